"""Whole checkpoints for the question "what is this?": goldens grown into models, and made ones.

A golden of ``tests/golden/sources`` holds a layer or two. ``grown`` puts them where they belong in
a one-layer model, repeats them for their siblings (q, k and v; gate and up) and fills the rest with
float tensors, so that the real tool's bytes go through every stage.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from awq_checkpoint import quantized
from safetensors.numpy import save_file
from tool_layouts import WRITERS, gptq_v2, settings

from mlc_bridge.models import MODELS
from mlc_bridge.qtensor import QTensor, take_rows
from mlc_bridge.sources import SOURCES, Checkpoint, detect

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
EXAMPLE = ROOT / "examples" / "models" / "stdlib-llama-7m-awq"
TEXTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
Tensors = dict[str, np.ndarray]
Json = dict[str, Any]


def write(home: Path, tensors: Tensors, config: Json) -> Path:
    """A checkpoint directory with the example's tokenizer."""
    home.mkdir(parents=True)
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, home / "model.safetensors")
    (home / "config.json").write_text(json.dumps(config))
    return with_texts(home)


def with_texts(home: Path) -> Path:
    for name in TEXTS:
        shutil.copyfile(EXAMPLE / name, home / name)
    return home


def grown(case: Path, home: Path) -> Path:
    """The golden ``case`` as a whole model of one layer."""
    ckpt = Checkpoint.open(case)
    source = detect(ckpt)
    if "model.embed_tokens.weight" in ckpt:  # a whole model already
        shutil.copytree(case, home)
        return with_texts(home)
    config = {**ckpt.config, **sizes(ckpt, source)}
    types = dict(ckpt.json("quant_model_description*.json"))
    described = bool(types)
    tensors: Tensors = {}
    for layer in owners(ckpt, source):
        for sibling in siblings(layer.rpartition(".")[2]):
            block = f"model.layers.0.{layer.split('.')[-2]}." if "." in layer else ""
            name = block + sibling
            for part in (n for n in ckpt.names if n.startswith(f"{layer}.")):
                tensors[name + part.removeprefix(layer)] = ckpt.tensor(part)
                types[name + part.removeprefix(layer)] = types.get(part)
    if any(name.endswith(".bias") for name in tensors):
        config["model_type"] = "qwen2"
    fill(tensors, config, str(ckpt.config.get("torch_dtype", "float16")))
    write(home, tensors, config)
    for extra in case.glob("quantize_config.json"):
        shutil.copyfile(extra, home / extra.name)
    if described:
        known = {n: types.get(n) or "FLOAT" for n in tensors}
        known |= {k: v for k, v in types.items() if "." not in k}
        (home / "quant_model_description.json").write_text(json.dumps(known))
    return home


def siblings(last: str) -> tuple[str, ...]:
    return next((group for group in SIBLINGS if last in group), (last,))


def owners(ckpt: Checkpoint, source: Any) -> tuple[str, ...]:
    found = source.layers(ckpt) or ckpt.layers("weight")
    return tuple(layer for layer in found if layer != "lm_head")


def sizes(ckpt: Checkpoint, source: Any) -> Json:
    """A llama whose layers have the golden's shapes."""
    found = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    for layer in owners(ckpt, source):
        n, k = source.read(ckpt, layer).shape
        last = layer.rpartition(".")[2]
        if last == "lm_head":
            found |= {"hidden_size": k, "vocab_size": n}
        elif last == "down_proj":
            found |= {"hidden_size": n, "intermediate_size": k}
        elif last == "up_proj":
            found |= {"hidden_size": k, "intermediate_size": n}
        else:
            found |= {"hidden_size": k, "head_dim": n}
    return {
        "vocab_size": 4096, **found, "model_type": "llama", "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128, "tie_word_embeddings": False,
    }  # fmt: skip


def fill(tensors: Tensors, config: Json, dtype: str) -> None:
    """Float tensors for every weight of the model that has none yet."""
    arch = MODELS[config["model_type"]]
    rng = np.random.default_rng(0)
    for weight in arch.weights(arch.config(config)):
        rows = weight.rows * max(weight.experts, 1)
        for layer, n in zip(weight.sources, rows, strict=True):
            if any(name.startswith(f"{layer}.") and name != f"{layer}.bias" for name in tensors):
                continue
            shape = (n, weight.k) if weight.k else (n,)
            tensors[f"{layer}.weight"] = rng.normal(0, 0.02, shape).astype(np.dtype(dtype))
            if weight.bias:
                tensors.setdefault(f"{layer}.bias", np.zeros(n, np.dtype(dtype)))


def float_model(golden: Path, home: Path) -> Path:
    """A float checkpoint with the config of a golden of ``tests/golden/models``."""
    config, tensors = json.loads(golden.read_text())["config"], {}
    config.pop("quantization_config", None)
    fill(tensors, config, "float16")
    return write(home, tensors, config)


class Example:
    """The example model's tensors, layer by layer, to be written in other forms."""

    def __init__(self) -> None:
        ckpt, source = Checkpoint.open(EXAMPLE), SOURCES["autoawq"]
        self.config: Json = json.loads((EXAMPLE / "config.json").read_text())
        self.layers: dict[str, QTensor] = {x: source.read(ckpt, x) for x in source.layers(ckpt)}  # type: ignore[misc]
        parts = {p for x in self.layers for p in source.parts(ckpt, x)}
        self.floats: Tensors = {n: ckpt.tensor(n) for n in ckpt.names if n not in parts}

    def tensors(
        self, writer: str = "autoawq", but: tuple[str, ...] = (), symmetric: bool = False
    ) -> Tensors:
        """All tensors in one tool's layout, without the layers that end in ``but``."""
        made = dict(self.floats)
        for layer, q in self.layers.items():
            if not layer.endswith(but or ("\0",)):
                made |= self.layer(layer, writer, q, symmetric)
        return made

    def layer(self, name: str, writer: str, q: QTensor, symmetric: bool = False) -> Tensors:
        assert q.zero is not None
        zeros = np.full(q.grid, 8, np.uint8) if symmetric else q.zero.unpack()
        parts = WRITERS[writer](q.codes.unpack(), zeros, q.scale)
        return {f"{name}.{suffix}": a for suffix, a in parts.items()}

    def as_gptq(self, **changes: Any) -> Json:
        return {**self.config, "quantization_config": {**settings("gptq v2", 128), **changes}}  # type: ignore[dict-item]


def folding_order(home: Path) -> Path:
    """GPTQ with activation order in down_proj alone, which folds into gate and up."""
    example, layers = Example(), {}
    order = np.sort(np.random.default_rng(4).permutation(768).reshape(-1, 128)).reshape(-1)
    back = np.argsort(order)
    tensors = dict(example.floats)
    for name, q in example.layers.items():
        layers[name] = take_rows(q, back) if name.endswith(("gate_proj", "up_proj")) else q
        tensors |= example.layer(name, "gptq v2", layers[name])
        if name.endswith("down_proj"):
            codes = q.codes.unpack()[:, back]
            made = gptq_v2(codes, q.zero.unpack(), q.scale)  # type: ignore[union-attr]
            tensors[f"{name}.qweight"] = made["qweight"]
            tensors[f"{name}.g_idx"] = made["g_idx"][back]
    return write(home, tensors, example.as_gptq(desc_act=True))


def order_in_one_layer(home: Path) -> Path:
    """GPTQ with activation order in the last o_proj alone, which nothing folds."""
    example = Example()
    tensors, name = example.tensors("gptq v2"), "model.layers.5.self_attn.o_proj"
    tensors[f"{name}.g_idx"] = np.random.default_rng(1).permutation(tensors[f"{name}.g_idx"])
    return write(home, tensors, example.as_gptq(desc_act=True))


def nested_config(home: Path) -> Path:
    """A multimodal config around a text model that is known."""
    example = Example()
    inner = {k: v for k, v in example.config.items() if k != "quantization_config"}
    quantized = example.config["quantization_config"]
    config = {"model_type": "nonesuch", "text_config": inner, "quantization_config": quantized}
    return write(home, example.tensors(), config)


def unknown_architecture(home: Path) -> Path:
    example = Example()
    return write(home, example.tensors(), {**example.config, "model_type": "nonesuch"})


def another_head(home: Path) -> Path:
    """The config ties the head to the embedding, the file has another one."""
    example = Example()
    return write(home, example.tensors(), {**example.config, "tie_word_embeddings": True})


def same_head(home: Path) -> Path:
    """A tied head that the file holds as a copy."""
    example = Example()
    tensors = example.tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return write(home, tensors, {**example.config, "tie_word_embeddings": True})


def one_wide_scale(home: Path) -> Path:
    """A scale of one late layer beyond float16, in a file whose scales are float32."""
    example = Example()
    tensors = example.tensors("gptq v2")
    tensors = {n: a.astype(np.float32) if n.endswith(".scales") else a for n, a in tensors.items()}
    tensors["model.layers.5.mlp.down_proj.scales"][0, 0] = 1e6
    return write(home, tensors, example.as_gptq())


def float_v_proj(home: Path) -> Path:
    """One part of a fused layer left in float, as tools leave layers that are hard to round."""
    example, name = Example(), "model.layers.2.self_attn.v_proj"
    tensors = example.tensors(but=(name,))
    tensors[f"{name}.weight"] = example.layers[name].dequantize().astype(np.float16)
    return write(home, tensors, example.config)


def quantized_head(home: Path) -> Path:
    """The head in AutoAWQ's form too, by plain rounding."""
    example = Example()
    tensors = example.tensors()
    parts, _ = quantized(tensors.pop("lm_head.weight"), 128)
    tensors |= {f"lm_head.{suffix}": a for suffix, a in parts.items()}
    return write(home, tensors, example.config)


def scales_of_their_own(home: Path) -> Path:
    """Float8 of a real tool, each of q, k and v with a scale of its own."""
    grown(GOLDEN / "sources" / "hf-fp8" / "per-tensor-static", home)
    ckpt = Checkpoint.open(home)
    tensors = {n: np.array(ckpt.tensor(n)) for n in ckpt.names}
    for factor, part in ((0.5, "k_proj"), (2, "v_proj")):
        name = next(n for n in tensors if f"{part}.weight_scale" in n)
        tensors[name] = (tensors[name].astype(np.float32) * factor).astype(tensors[name].dtype)
    save_file(tensors, home / "model.safetensors")
    return home


def missing_part(home: Path) -> Path:
    example = Example()
    tensors = example.tensors()
    del tensors["model.layers.3.mlp.up_proj.scales"]
    return write(home, tensors, example.config)


MADE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "activation order that folds": (folding_order, "q4f16_autoawq"),
    "activation order in one late layer": (order_in_one_layer, "o_proj.*activation order"),
    "text_config names the model": (nested_config, "q4f16_autoawq"),
    "unknown architecture": (unknown_architecture, "nonesuch"),
    "tied, but another head": (another_head, "q4f16_autoawq"),
    "tied, and a copy of the embedding": (same_head, "q4f16_autoawq"),
    "one scale beyond float16": (
        one_wide_scale,
        "no quantization scheme holds every layer.*down_proj",
    ),
    "v_proj is float, q and k are not": (float_v_proj, "q4f16_autoawq"),
    "a quantized head": (quantized_head, "q4f16_autoawq"),
    "float8 scales of their own": (scales_of_their_own, "fp8_e4m3fn_f16_row_scale"),
    "a tensor is missing": (missing_part, "up_proj.scales"),
}
