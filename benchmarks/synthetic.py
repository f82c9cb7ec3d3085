"""Synthetic Llama checkpoints of a given shape: random valid words, written as a stream.

    python -m benchmarks.synthetic OUT --shape 1b --format awq --group 128

``awq`` is AutoAWQ's GEMM layout (any 32-bit word is eight valid codes; zeros 7 or 8; scales
sized so that activations stay near 1 through the layers), ``dense`` is float16. Files are
sharded with an index, as Hugging Face saves them. Memory stays at one tensor.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "tiny": Shape(256, 4, 4, 2, 768, 4096),
    "1b": Shape(2048, 22, 32, 4, 5632, 32000),
    "7b": Shape(4096, 32, 32, 32, 11008, 32000),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor to come: its header entry and how to make it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[np.random.Generator], Array]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * {"I32": 4, "F16": 2}[self.dtype]


def write_checkpoint(
    directory: str | Path,
    shape: str | Shape,
    *,
    group: int | None = 128,
    seed: int = 0,
    shard_bytes: int = 1 << 30,
) -> int:
    """Write config.json, shards and index; ``group`` None writes float16. Returns bytes of data."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    sizes = SHAPES[shape] if isinstance(shape, str) else shape
    rng = np.random.default_rng(seed)
    shards = _split(list(_tensors(sizes, group)), shard_bytes)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        _write(directory / name, shard, rng)
        weight_map.update({tensor.name: name for tensor in shard})
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (directory / "config.json").write_text(json.dumps(config(sizes, group), indent=1))
    return total


def config(shape: Shape, group: int | None) -> dict[str, Any]:
    """config.json of the checkpoint."""
    made: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    if group is not None:
        made["quantization_config"] = {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": group,
            "zero_point": True,
            "modules_to_not_convert": None,
        }
    return made


def _tensors(s: Shape, group: int | None) -> Iterator[Tensor]:
    yield _float("model.embed_tokens.weight", (s.vocab, s.hidden), 1.0)
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    for i in range(s.layers):
        layer = f"model.layers.{i}"
        for name, n, k in (
            ("self_attn.q_proj", q, s.hidden),
            ("self_attn.k_proj", kv, s.hidden),
            ("self_attn.v_proj", kv, s.hidden),
            ("self_attn.o_proj", s.hidden, q),
            ("mlp.gate_proj", s.inner, s.hidden),
            ("mlp.up_proj", s.inner, s.hidden),
            ("mlp.down_proj", s.hidden, s.inner),
        ):
            yield from _linear(f"{layer}.{name}", n, k, group)
        yield _ones(f"{layer}.input_layernorm.weight", s.hidden)
        yield _ones(f"{layer}.post_attention_layernorm.weight", s.hidden)
    yield _ones("model.norm.weight", s.hidden)
    yield _float("lm_head.weight", (s.vocab, s.hidden), s.hidden**-0.5)


def _linear(name: str, n: int, k: int, group: int | None) -> Iterator[Tensor]:
    if group is None:
        yield _float(f"{name}.weight", (n, k), k**-0.5)
        return
    groups = k // group if group > 0 else 1
    step = k**-0.5 / 4.6  # 4.6: standard deviation of a uniform code
    yield Tensor(f"{name}.qweight", "I32", (k, n // 8), lambda r: _words(r, (k, n // 8)))
    yield Tensor(f"{name}.qzeros", "I32", (groups, n // 8), lambda r: _zeros(r, (groups, n // 8)))
    yield Tensor(f"{name}.scales", "F16", (groups, n), lambda r: _scales(r, (groups, n), step))


def _words(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return np.frombuffer(rng.bytes(4 * shape[0] * shape[1]), np.int32).reshape(shape)


def _zeros(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return (_words(rng, shape).view(np.uint32) & 0x11111111) + np.uint32(0x77777777)


def _scales(rng: np.random.Generator, shape: tuple[int, int], step: float) -> Array:
    return (step * rng.uniform(0.5, 1.5, shape)).astype(np.float16)


def _float(name: str, shape: tuple[int, int], size: float) -> Tensor:
    def make(rng: np.random.Generator) -> Array:
        return (rng.standard_normal(shape, np.float32) * np.float32(size)).astype(np.float16)

    return Tensor(name, "F16", shape, make)


def _ones(name: str, n: int) -> Tensor:
    return Tensor(name, "F16", (n,), lambda rng: np.ones(n, np.float16))


def _split(tensors: list[Tensor], limit: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > limit:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _write(path: Path, tensors: list[Tensor], rng: np.random.Generator) -> None:
    header, offset = {}, 0
    for t in tensors:
        span = [offset, offset + t.nbytes]
        header[t.name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": span}
        offset += t.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for t in tensors:
            file.write(np.ascontiguousarray(t.make(rng)).data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--format", choices=("awq", "dense"), default="awq")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    group = args.group if args.format == "awq" else None
    size = write_checkpoint(args.output, args.shape, group=group, seed=args.seed)
    print(f"{args.output}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
