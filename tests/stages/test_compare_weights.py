"""The weights of an artifact against its checkpoint: each way to spoil one is named by its tensor.

The spoiled bytes are written into the shards and every digest made anew, so that nothing but the
values themselves can tell.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from awq_checkpoint import write_awq
from recognise_cases import write
from safetensors.numpy import load_file, save_file

from mlc_bridge import (
    CheckJob,
    ConvertJob,
    GenConfigJob,
    VerifyJob,
    check_artifact,
    convert_weight,
    gen_config,
    verify,
)
from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.inventory import Entry, Inventory
from mlc_bridge.artifact.manifest import check_lib
from mlc_bridge.artifact.tensor_cache import INDEX, read_index
from mlc_bridge.errors import ArtifactError, ConfigError
from mlc_bridge.stages import verify as verify_stage
from mlc_bridge.stages.recognise import described
from mlc_bridge.stages.verify import window_of
from mlc_bridge.stages.weights_report import WeightsReport

Array = np.ndarray[Any, Any]
SCHEMES = ("q4f16_autoawq", "q4f16_1", "q8f16_1", "fp8_e4m3fn_f16_row_scale", "q0f16")
HIDDEN, INNER, VOCAB, LAYERS = 128, 256, 4096, 2
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "torch_dtype": "float16",
}
FLOAT8 = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True,
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8, "type": "float", "strategy": "token", "symmetric": True,
                "dynamic": True,
            },
        }
    },
    "ignore": ["lm_head"],
}  # fmt: skip


def float_tensors() -> dict[str, Array]:
    rng = np.random.default_rng(18)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.05).astype(np.float16)

    found = {
        name: normal(VOCAB, HIDDEN) for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    found["model.norm.weight"] = normal(HIDDEN) + np.float16(1)
    for i in range(LAYERS):
        home = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{home}.{name}.weight"] = normal(HIDDEN) + np.float16(1)
        for name in "qkvo":
            found[f"{home}.self_attn.{name}_proj.weight"] = normal(HIDDEN, HIDDEN)
        for name in "qkv":
            found[f"{home}.self_attn.{name}_proj.bias"] = normal(HIDDEN)
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)),
                            ("down", (HIDDEN, INNER))):  # fmt: skip
            found[f"{home}.mlp.{name}_proj.weight"] = normal(*shape)
    return found


def as_float8(home: Path) -> None:
    """The checkpoint's linears as llm-compressor's FP8-dynamic stores them."""
    tensors = load_file(home / "model.safetensors")
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        w = tensors[name].astype(np.float32)
        scale = (np.abs(w).max(axis=1, keepdims=True) / 448).astype(ml_dtypes.bfloat16)
        tensors[name] = (w / scale.astype(np.float32)).astype(ml_dtypes.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, home / "model.safetensors")
    (home / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": FLOAT8}))


@dataclass(frozen=True)
class Made:
    """An artifact, the checkpoint it was made from, and how to write arrays into its shards."""

    scheme: str
    model: Path
    checkpoint: Path

    def array(self, name: str) -> Array:
        return np.array(read_index(self.model).array(name))

    def put(self, name: str, values: Array) -> None:
        record = read_index(self.model).records[name]
        assert values.nbytes == record.nbytes
        with (self.model / record.shard).open("r+b") as file:
            file.seek(record.offset)
            file.write(np.ascontiguousarray(values).tobytes())

    def edit(self, name: str, change: Callable[[Array], Array | None]) -> None:
        values = self.array(name)
        changed = change(values)
        self.put(name, values if changed is None else changed)

    def sealed(self) -> Made:
        """With digests and md5 sums of what the files hold now."""
        index = json.loads((self.model / INDEX).read_text())
        for shard in index["records"]:
            data = (self.model / shard["dataPath"]).read_bytes()
            shard["md5sum"] = hashlib.md5(data).hexdigest()
        (self.model / INDEX).write_text(json.dumps(index))
        listed = Inventory.read(self.model)
        assert listed is not None
        files = {name: Entry.of(self.model / name) for name in listed.files}
        (self.model / "mlc-bridge.json").write_text(Inventory(files).text())
        assert read_index(self.model).prove(md5=True).digests
        return self

    def compared(self) -> WeightsReport:
        return verify(VerifyJob(self.model, self.checkpoint, weights_only=True)).weights

    @property
    def codes(self) -> str:
        return {"q4f16_autoawq": "qweight", "q0f16": "weight"}.get(self.scheme, "q_weight")

    @property
    def scales(self) -> str:
        return "scales" if self.scheme == "q4f16_autoawq" else "q_scale"

    def rows_of(self, name: str) -> Array:
        """A view with the rows of the matrix (or words of rows) first."""
        values = self.array(name)
        return values.T if self.scheme == "q4f16_autoawq" else values


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    root = tmp_path_factory.mktemp("compared")
    plain = write(root / "float", float_tensors(), CONFIG)
    made: dict[str, Made] = {}

    def build(scheme: str) -> Made:
        if scheme not in made:
            home = root / f"{scheme}-source"
            shutil.copytree(plain, home)
            if scheme == "q4f16_autoawq":
                write_awq(plain, home)
            elif scheme.startswith("fp8"):
                as_float8(home)
            output = root / scheme
            gen_config(GenConfigJob(home, output, scheme, "LM"))
            convert_weight(ConvertJob(home, output, scheme))
            made[scheme] = Made(scheme, output, home)
        return made[scheme]

    return build


@pytest.fixture
def spoil(built: Callable[[str], Made], tmp_path: Path) -> Callable[[str], Made]:
    """A copy of the artifact to write into."""

    def copy(scheme: str) -> Made:
        made = built(scheme)
        shutil.copytree(made.model, tmp_path / "model")
        return Made(scheme, tmp_path / "model", made.checkpoint)

    return copy


def named(made: Made, tensor: str, layer: str = "", cause: str = "") -> WeightsReport:
    """The comparison must name this tensor, and no other."""
    found = made.sealed().compared()
    assert not found.passed
    assert {d.tensor for d in found.differences} == {tensor}
    first = found.differences[0]
    assert first.layer.startswith(layer)
    assert cause in first.cause
    assert tensor in found.verdict
    return found


QUANTIZED = SCHEMES[:-1]
DOWN = "model.layers.1.mlp.down_proj"
QKV = "model.layers.1.self_attn.c_attn"


def whole(made: Made, path: str) -> str:
    """What a difference in a matrix is called: float parameters by their whole name."""
    return f"{path}.weight" if made.scheme == "q0f16" else path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_was_converted_passes(built: Callable[[str], Made], scheme: str) -> None:
    found = built(scheme).compared()
    assert found.passed
    assert not found.differences
    rounded = {"q4f16_1": 10, "q8f16_1": 8}.get(scheme, 0)  # with embedding and head, or without
    assert len(found.rounded) == rounded
    assert (found.weights, found.exact) == (15, 15 - rounded)
    assert all(0 < error.relative < 0.15 for error in found.rounded)


@pytest.mark.parametrize("bit", [0, 3, 5])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_flipped_bit_of_a_code(spoil: Callable[[str], Made], scheme: str, bit: int) -> None:
    made = spoil(scheme)
    name = f"{DOWN}.{made.codes}"
    data = np.frombuffer(made.array(name).tobytes(), np.uint8).copy()
    data[1000] ^= 1 << bit
    made.put(name, data)
    found = named(made, whole(made, DOWN), DOWN)
    assert found.differences[0].count == 1
    assert found.differences[0].elements == HIDDEN * INNER


@pytest.mark.parametrize("scheme", SCHEMES)
def test_q_and_k_swapped(spoil: Callable[[str], Made], scheme: str) -> None:
    made = spoil(scheme)
    suffixes = {made.codes} if scheme == "q0f16" else {made.codes, made.scales}
    for suffix in suffixes | ({"qzeros"} if scheme == "q4f16_autoawq" else set()):
        rows = made.rows_of(f"{QKV}.{suffix}")
        third = len(rows) // 3
        swapped = np.concatenate([rows[third : 2 * third], rows[:third], rows[2 * third :]])
        made.put(f"{QKV}.{suffix}", swapped.T if scheme == "q4f16_autoawq" else swapped)
    k_proj = "" if scheme == "q0f16" else "values of model.layers.1.self_attn.k_proj"
    named(made, whole(made, QKV), "model.layers.1.self_attn.q_proj", k_proj)


def test_zeros_off_by_one(spoil: Callable[[str], Made]) -> None:
    made = spoil("q4f16_autoawq")
    made.edit(f"{DOWN}.qzeros", lambda words: words ^ np.uint32(0x11111111))
    named(made, DOWN, DOWN)


@pytest.mark.parametrize("factor", [-1.0, 1.01])
@pytest.mark.parametrize("scheme", QUANTIZED)
def test_a_scale(spoil: Callable[[str], Made], scheme: str, factor: float) -> None:
    """One of them turned, or one percent too large."""
    made = spoil(scheme)

    def change(scales: Array) -> None:
        scales.reshape(-1)[7] *= scales.dtype.type(factor)

    made.edit(f"{DOWN}.{made.scales}", change)
    rounded = scheme in ("q4f16_1", "q8f16_1")
    named(made, DOWN, DOWN, "" if rounded else "sign" if factor < 0 else "times 1.01")


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_all_scales_one_percent_off(spoil: Callable[[str], Made], scheme: str) -> None:
    made = spoil(scheme)
    made.edit(f"{DOWN}.{made.scales}", lambda s: (s.astype(np.float32) * 1.01).astype(s.dtype))
    named(made, DOWN, DOWN)


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_another_layers_scales(spoil: Callable[[str], Made], scheme: str) -> None:
    made = spoil(scheme)
    made.put(f"{DOWN}.{made.scales}", made.array(f"model.layers.0.mlp.down_proj.{made.scales}"))
    named(made, DOWN, DOWN)


@pytest.mark.parametrize("scheme", ["q4f16_autoawq", "q4f16_1"])
def test_nibble_order(spoil: Callable[[str], Made], scheme: str) -> None:
    made = spoil(scheme)

    def turn(words: Array) -> Array:
        data = words.view(np.uint8)
        return (data >> 4 | data << 4).view(np.uint32)

    made.edit(f"{DOWN}.{made.codes}", turn)
    named(made, DOWN, DOWN)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_embedding_rows_swapped(spoil: Callable[[str], Made], scheme: str) -> None:
    made = spoil(scheme)
    table = "model.embed_tokens"
    quantized = scheme == "q4f16_1"
    for suffix in ("q_weight", "q_scale") if quantized else ("weight",):

        def swap(rows: Array) -> None:
            rows[[3, 9]] = rows[[9, 3]]

        made.edit(f"{table}.{suffix}", swap)
    found = named(made, table if quantized else f"{table}.weight", table)
    assert found.differences[0].index[0] == 3
    assert quantized or found.differences[0].cause == "rows in another order"


@pytest.mark.parametrize("scheme", ["q4f16_autoawq", "q0f16"])
def test_one_sign_in_the_head(spoil: Callable[[str], Made], scheme: str) -> None:
    made = spoil(scheme)

    def turn(table: Array) -> None:
        table[4000, 17] *= -1

    made.edit("lm_head.weight", turn)
    found = named(made, "lm_head.weight", "lm_head", "the sign is turned")
    assert found.differences[0].index == (4000, 17)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_zeroed_bias(spoil: Callable[[str], Made], scheme: str) -> None:
    made = spoil(scheme)
    made.edit(f"{QKV}.bias", np.zeros_like)
    named(made, f"{QKV}.bias", "model.layers.1.self_attn.q_proj.bias", "zeros")


@pytest.mark.parametrize("name", [f"{QKV}.bias", "model.norm.weight"])
def test_a_missing_parameter(spoil: Callable[[str], Made], name: str) -> None:
    made = spoil("q0f16")
    index = json.loads((made.model / INDEX).read_text())
    for shard in index["records"]:
        for record in shard["records"]:
            if record["name"] == name:
                record["name"] = "something.else"
    (made.model / INDEX).write_text(json.dumps(index))
    found = made.sealed().compared()
    assert [d.tensor for d in found.differences] == [name, "something.else"]
    assert found.differences[0].found == "no such parameter"


def test_a_dropped_head(spoil: Callable[[str], Made]) -> None:
    """The artifact ties it to the embedding, the checkpoint has another one."""
    made = spoil("q0f16")
    path = made.model / "mlc-chat-config.json"
    config = json.loads(path.read_text())
    config["model_config"]["tie_word_embeddings"] = True
    path.write_text(json.dumps(config))
    found = made.sealed().compared()
    assert {d.tensor for d in found.differences} == {"lm_head.weight"}
    assert any("left out" in d.found for d in found.differences)


def test_another_rope_theta(spoil: Callable[[str], Made]) -> None:
    made = spoil("q0f16")
    path = made.model / "mlc-chat-config.json"
    config = json.loads(path.read_text())
    config["model_config"]["rope_theta"] = 500000.0
    path.write_text(json.dumps(config))
    (difference,) = made.sealed().compared().differences
    assert (difference.tensor, difference.layer) == ("model_config", "rope_theta")
    assert "500000" in difference.found
    assert "10000" in difference.expected


def test_the_wrong_longrope_list(tmp_path: Path) -> None:
    """Phi-3's config with one factor of the long list changed after the conversion."""
    tensors = {n: w for n, w in float_tensors().items() if not n.endswith(".bias")}
    for i in range(LAYERS):
        for home, fused, parts in (("self_attn", "qkv_proj", "qkv"), ("mlp", "gate_up_proj",
                                                                      ("gate", "up"))):  # fmt: skip
            names = [f"model.layers.{i}.{home}.{part}_proj.weight" for part in parts]
            joined = np.concatenate([tensors.pop(name) for name in names])
            tensors[f"model.layers.{i}.{home}.{fused}.weight"] = joined
    rope = {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    config = {**CONFIG, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"],
              "rope_scaling": rope, "original_max_position_embeddings": 256}  # fmt: skip
    home = write(tmp_path / "phi3", tensors, config)
    gen_config(GenConfigJob(home, tmp_path / "out", "q0f16", "LM"))
    convert_weight(ConvertJob(home, tmp_path / "out", "q0f16"))
    made = Made("q0f16", tmp_path / "out", home)
    assert made.compared().passed
    assert window_of(VerifyJob(made.model, home)) == (512, ())
    path = made.model / "mlc-chat-config.json"
    chat = json.loads(path.read_text())
    chat["model_config"]["rope_scaling"]["long_factor"][3] = 2.5
    path.write_text(json.dumps(chat))
    (difference,) = made.compared().differences
    assert (difference.tensor, difference.layer) == ("model_config", "rope_scaling")
    assert "2.5" in difference.found


@pytest.mark.parametrize(
    ("turn", "room", "window", "told"),
    [(None, 8192, 512, ""), (128, 8192, 512, ""), (1024, 8192, 1088, ""), (1024, 700, 512, ""),
     (4096, 8192, 512, "--window 4160"), (4096, 256, 256, "")],
)  # fmt: skip
def test_windows_cross_where_a_model_computes_otherwise(
    monkeypatch: pytest.MonkeyPatch, turn: int | None, room: int, window: int, told: str
) -> None:
    chat = SimpleNamespace(load=lambda _: SimpleNamespace(context_window_size=room))
    monkeypatch.setattr(verify_stage, "ChatConfig", chat)
    config = SimpleNamespace(sliding_window=turn, restart_beyond=None)
    monkeypatch.setattr(verify_stage, "described", lambda _: SimpleNamespace(config=config))
    found, notes = window_of(VerifyJob("m", "c"))
    assert found == window
    assert bool(notes) == bool(told)
    assert told in " ".join(notes)
    assert window_of(VerifyJob("m", "c", window=99)) == (99, ())


def test_another_schemes_library(built: Callable[[str], Made]) -> None:
    """What it asks for is not there, and the first parameter is named."""
    wanted = described(ChatConfig.load(built("q4f16_1").model)).specs.items()
    params = [{"name": n, "shape": list(s.shape), "dtype": s.dtype} for n, s in wanted]
    check_lib({"params": params}, built("q4f16_1").model)
    with pytest.raises(ArtifactError, match=r"embed_tokens\.q_weight: the lib does not fit"):
        check_lib({"params": params}, built("q0f16").model)


def test_two_artifacts(built: Callable[[str], Made], spoil: Callable[[str], Made]) -> None:
    """Equal, of another scheme, with one bit flipped, and no twins at all."""
    made, made_before = spoil("q4f16_1"), built("q4f16_1")

    def against(other: Path) -> WeightsReport:
        return verify(VerifyJob(made.model, against=other, weights_only=True)).weights

    same = against(made_before.model)
    assert (same.passed, same.exact) == (True, same.weights)
    floats = against(built("q0f16").model)
    assert floats.passed
    rounded = {e.layer: e.relative for e in floats.rounded}
    assert DOWN in rounded
    assert all(0 < error < 0.15 for error in rounded.values())
    made.edit(f"{DOWN}.q_scale", np.negative)
    (difference,) = against(made_before.model).differences
    assert difference.tensor == DOWN
    path = made.model / "mlc-chat-config.json"
    config = json.loads(path.read_text())
    config["model_config"]["num_hidden_layers"] = 1
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="another model"):
        against(made_before.model)
    for wishes in ({}, {"checkpoint": "c", "against": "a"}):
        with pytest.raises(ConfigError, match="--checkpoint and --against"):
            verify(VerifyJob(made.model, **wishes))


def test_check_compares_with_a_checkpoint_too(spoil: Callable[[str], Made]) -> None:
    made = spoil("q4f16_autoawq")
    checks = check_artifact(CheckJob(made.model, checkpoint=made.checkpoint)).checks
    (said,) = [c for c in checks if c.name == "weights and checkpoint"]
    assert said.passed, said.detail
    made.edit(f"{DOWN}.scales", np.negative)
    spoiled = check_artifact(CheckJob(made.sealed().model, checkpoint=made.checkpoint)).checks
    failed = {c.name: c.detail for c in spoiled if not c.passed}
    assert set(failed) == {"weights and checkpoint", "lib"}  # none was compiled
    assert DOWN in failed["weights and checkpoint"]


def test_on_the_command_line_without_torch_and_tvm(spoil: Callable[[str], Made]) -> None:
    """Exit code 3, the tensor in the error and the whole report as JSON all the same."""
    made = spoil("q4f16_autoawq")
    made.edit(f"{DOWN}.scales", np.negative)
    bare = "import sys; sys.modules.update(torch=None, transformers=None, tvm=None); "
    call = [sys.executable, "-c", bare + "from mlc_bridge.cli import main; main()", "verify"]
    call += [str(made.model), "--checkpoint", str(made.checkpoint), "--weights-only", "--json"]
    ran = subprocess.run(call, capture_output=True, text=True, check=False)
    assert ran.returncode == 3, ran.stderr
    assert DOWN in ran.stderr
    report = json.loads(ran.stdout)
    assert report["behaviour"] is None
    assert report["weights"]["differences"][0]["tensor"] == DOWN
