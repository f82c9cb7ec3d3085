"""llama.cpp's side of a comparison: a synthetic Q4_0 model of a given shape, timed on the CPU.

    python -m benchmarks.llamacpp model.gguf --shape 1b --batches 1 8 --threads 2

Runs in an environment of its own (``pip install llama-cpp-python gguf``); prints one line of JSON.
The file is what ``llama-quantize ... Q4_0`` makes of a Llama: Q4_0 everywhere, Q6_K for the head.
llama.cpp repacks Q4_0 for the vector unit at load, which is its fastest CPU path.

    Q4_0  32 weights: float16 scale, 16 bytes of codes          value = (code - 8) * scale
    Q6_K  256 weights: 192 bytes of codes, 16 int8 scales, d    value = d * scale * (code - 32)
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.synthetic import SHAPES, Shape

Array = np.ndarray[Any, Any]
PROMPT = 16


def write_gguf(path: Path, shape: Shape, seed: int = 0) -> None:
    """Write a random model of ``shape``."""
    import gguf

    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama", use_temp_file=True)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("no_vocab")
    types = gguf.GGMLQuantizationType
    for name, n, k in _linears(shape):
        if name == "output.weight":
            writer.add_tensor(name, _q6_k(rng, n, k), raw_dtype=types.Q6_K)
        else:
            writer.add_tensor(name, _q4_0(rng, n, k), raw_dtype=types.Q4_0)
    for name in _norms(shape):
        writer.add_tensor(name, np.ones(shape.hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _linears(s: Shape) -> list[tuple[str, int, int]]:
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    names = [("token_embd.weight", s.vocab, s.hidden), ("output.weight", s.vocab, s.hidden)]
    for i in range(s.layers):
        names += [
            (f"blk.{i}.attn_q.weight", q, s.hidden),
            (f"blk.{i}.attn_k.weight", kv, s.hidden),
            (f"blk.{i}.attn_v.weight", kv, s.hidden),
            (f"blk.{i}.attn_output.weight", s.hidden, q),
            (f"blk.{i}.ffn_gate.weight", s.inner, s.hidden),
            (f"blk.{i}.ffn_up.weight", s.inner, s.hidden),
            (f"blk.{i}.ffn_down.weight", s.hidden, s.inner),
        ]
    return names


def _norms(s: Shape) -> list[str]:
    kinds = ("attn_norm", "ffn_norm")
    blocks = [f"blk.{i}.{kind}.weight" for i in range(s.layers) for kind in kinds]
    return [*blocks, "output_norm.weight"]


def _q4_0(rng: np.random.Generator, n: int, k: int) -> Array:
    blocks = np.empty((n, k // 32, 18), np.uint8)
    scale = (k**-0.5 / 4.6 * rng.uniform(0.5, 1.5, (n, k // 32))).astype(np.float16)
    blocks[..., :2] = scale[..., None].view(np.uint8)
    blocks[..., 2:] = np.frombuffer(rng.bytes(n * k // 2), np.uint8).reshape(n, k // 32, 16)
    return blocks.reshape(n, -1)


def _q6_k(rng: np.random.Generator, n: int, k: int) -> Array:
    blocks = np.empty((n, k // 256, 210), np.uint8)
    codes = np.frombuffer(rng.bytes(n * k // 256 * 192), np.uint8)
    blocks[..., :192] = codes.reshape(n, k // 256, 192)
    scales = rng.integers(8, 24, (n, k // 256, 16), np.int8)
    blocks[..., 192:208] = scales.view(np.uint8)
    d = np.full((n, k // 256, 1), k**-0.5 / (16 * 18.5), np.float16)
    blocks[..., 208:] = d.view(np.uint8)
    return blocks.reshape(n, -1)


class LlamaCpp:
    """A loaded model; every call appends tokens to the sequences ``0..n-1``."""

    def __init__(self, path: Path, threads: int, sequences: int, vocab: int) -> None:
        import llama_cpp as c

        self.c, self.vocab = c, vocab
        c.llama_backend_init()
        model = c.llama_model_default_params()
        self.model = c.llama_model_load_from_file(str(path).encode(), model)
        context = c.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = 8192, 2048, 512
        context.n_seq_max = sequences
        context.n_threads = context.n_threads_batch = threads
        self.context = c.llama_init_from_model(self.model, context)
        if not self.context:
            raise RuntimeError(f"llama.cpp could not open {path}")
        self.length = [0] * sequences

    def append(self, runs: list[list[int]]) -> Array:
        """Logits ``[len(runs), vocab]`` after the last token of each run."""
        c, total = self.c, sum(map(len, runs))
        batch, at, wanted = c.llama_batch_init(total, 0, 1), 0, []
        for sequence, run in enumerate(runs):
            for i, token in enumerate(run):
                batch.token[at], batch.pos[at] = token, self.length[sequence] + i
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = i == len(run) - 1
                at += 1
            wanted.append(at - 1)
            self.length[sequence] += len(run)
        batch.n_tokens = total
        if c.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        logits = [
            np.ctypeslib.as_array(c.llama_get_logits_ith(self.context, i), (self.vocab,))
            for i in wanted
        ]
        c.llama_batch_free(batch)
        return np.array(logits)

    def clear(self) -> None:
        memory = self.c.llama_get_memory(self.context)
        self.c.llama_memory_clear(memory, ctypes.c_bool(True))
        self.length = [0] * len(self.length)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    vocab = SHAPES[args.shape].vocab
    model = LlamaCpp(args.model, args.threads, max(args.batches), vocab)
    result: dict[str, Any] = {}
    for batch in args.batches:
        model.append([[5] * PROMPT] * batch)
        times = []
        for step in range(args.steps + 3):
            start = time.perf_counter()
            logits = model.append([[7 + step]] * batch)
            times.append(time.perf_counter() - start)
        if not np.isfinite(logits).all():
            raise RuntimeError("llama.cpp answered with NaN")
        model.clear()
        result[f"decode {batch}"] = times[3:]
    times = []
    for _ in range(args.prefills):
        start = time.perf_counter()
        model.append([[5] * args.tokens])
        times.append(time.perf_counter() - start)
        model.clear()
    result[f"prefill {args.tokens}"] = times
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--prefills", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if not args.model.exists():
        write_gguf(args.model, SHAPES[args.shape])
    print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()
