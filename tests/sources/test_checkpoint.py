"""Checkpoints that are damaged, incomplete or made to mislead are refused before data is mapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mlc_bridge.errors import SourceError
from mlc_bridge.sources import Checkpoint

TWO = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
}


def write(path: Path, header: Any, data: bytes = bytes(32), length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def changed(**entry: Any) -> dict[str, Any]:
    return {**TWO, "b": {**TWO["b"], **entry}}


HOSTILE = {
    "empty file": (b"", b"", 0, "no tensor owns|header"),
    "header length lies": (TWO, bytes(32), 1 << 40, "shorter than its header"),
    "header length too small": (TWO, bytes(32), 20, "not valid JSON"),
    "header is no json": (b"{nonsense", b"", None, "not valid JSON"),
    "header is no utf-8": (b"\xff\xfe{}", b"", None, "not valid JSON"),
    "header is a list": (b"[1, 2]", b"", None, "not a JSON object"),
    "header nests deeply": (b"[" * 100000, b"", None, "not valid JSON"),
    "truncated data": (TWO, bytes(31), None, "truncated"),
    "bytes nobody owns": (TWO, bytes(40), None, "no tensor owns"),
    "overlap": (changed(data_offsets=[20, 28]), bytes(28), None, "b: the tensor overlaps a"),
    "hole": (
        changed(data_offsets=[26, 34]),
        bytes(34),
        None,
        "b: the tensor leaves a hole after a",
    ),
    "offsets and shape disagree": (changed(shape=[5]), bytes(32), None, "b: the tensor's size"),
    "offsets backwards": (changed(data_offsets=[32, 24]), bytes(32), None, "b: the tensor's size"),
    "negative offset": (changed(data_offsets=[-8, 0]), bytes(32), None, "b: shape and data_offs"),
    "negative shape": (changed(shape=[-2, -2]), bytes(32), None, "b: shape and data_offsets"),
    "huge shape": (changed(shape=[1 << 62, 1 << 62]), bytes(32), None, "b: shape and data_offs"),
    "boolean shape": (changed(shape=[True]), bytes(32), None, "b: shape and data_offsets"),
    "unknown dtype": (changed(dtype="F7"), bytes(32), None, "b: unknown dtype"),
    "no offsets": ({**TWO, "b": {"dtype": "F16"}}, bytes(24), None, "b: a header entry is incom"),
    "name twice": (
        b'{"a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        bytes(1),
        None,
        "names 'a' twice",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file(tmp_path: Path, case: str) -> None:
    header, data, length, message = HOSTILE[case]
    file = write(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(SourceError, match=message) as error:
        Checkpoint.open(tmp_path)
    assert str(file) in str(error.value)


def test_every_truncation_of_a_real_file(tmp_path: Path) -> None:
    save_file({"w": np.arange(6, dtype=np.int32), "s": np.ones(3, np.float16)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for end in range(len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:end])
        with pytest.raises(SourceError):
            Checkpoint.open(tmp_path)


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    arrays = {
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bf16": np.arange(4).astype(ml_dtypes.bfloat16),
        "fp8": np.arange(3).astype(ml_dtypes.float8_e4m3fn),
        "scalar": np.array(2.5, np.float32),
        "none": np.empty((0, 4), np.int8),
        "i64": np.array([[1 << 40, -1]]),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    ckpt = Checkpoint.open(tmp_path)
    assert set(ckpt.names) == set(arrays)
    for name, wanted in arrays.items():
        got = ckpt.tensor(name)
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert got.tobytes() == wanted.tobytes()
        assert ckpt.file_of(name) == tmp_path / "model.safetensors"
    assert not ckpt.tensor("f32").flags.writeable


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", TWO)
    with pytest.raises(SourceError, match=r"model\.norm\.weight: the checkpoint lacks this tensor"):
        Checkpoint.open(tmp_path).tensor("model.norm.weight")


def sharded(home: Path, weight_map: dict[str, str]) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.ones(2, np.float32)}, home / "model-1.safetensors")
    save_file({"b": np.zeros(2, np.float32)}, home / "model-2.safetensors")
    index = home / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


GOOD_MAP = {"a": "model-1.safetensors", "b": "model-2.safetensors"}


def test_shards_by_directory_index_and_file(tmp_path: Path) -> None:
    index = sharded(tmp_path, GOOD_MAP)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for path in (tmp_path, index):
        ckpt = Checkpoint.open(path)
        assert set(ckpt.names) == {"a", "b"}
        assert ckpt.tensor("a").tolist() == [1, 1]
        assert ckpt.config == {"model_type": "llama"}
    assert Checkpoint.open(tmp_path / "model-2.safetensors").names == ("b",)


@pytest.mark.parametrize(
    "name",
    ["../outside/model-2.safetensors", "sub/model-2.safetensors", "..", "", "sub\\x.safetensors"],
)
def test_weight_map_must_not_leave_the_directory(tmp_path: Path, name: str) -> None:
    sharded(tmp_path / "outside", GOOD_MAP)
    sharded(tmp_path / "home" / "sub", GOOD_MAP)
    index = sharded(tmp_path / "home", {**GOOD_MAP, "b": name})
    with pytest.raises(SourceError, match="leads out of the checkpoint's directory") as error:
        Checkpoint.open(index.parent)
    assert repr(name) in str(error.value)


def test_weight_map_must_not_be_absolute(tmp_path: Path) -> None:
    outside = sharded(tmp_path / "outside", GOOD_MAP).parent / "model-2.safetensors"
    index = sharded(tmp_path / "home", {**GOOD_MAP, "b": str(outside)})
    with pytest.raises(SourceError, match="leads out"):
        Checkpoint.open(index)


def test_shard_must_not_be_a_link_out_of_the_directory(tmp_path: Path) -> None:
    outside = sharded(tmp_path / "outside", GOOD_MAP).parent / "model-2.safetensors"
    index = sharded(tmp_path / "home", GOOD_MAP)
    (index.parent / "model-2.safetensors").unlink()
    (index.parent / "model-2.safetensors").symlink_to(outside)
    with pytest.raises(SourceError, match="leads out"):
        Checkpoint.open(index)


def test_hub_cache_links_are_followed(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    index = sharded(repo / "snapshots" / "abc", GOOD_MAP)
    (repo / "blobs").mkdir()
    for number, file in enumerate([index, *sorted(index.parent.glob("model-*"))]):
        file.rename(repo / "blobs" / f"hash{number}")
        file.symlink_to(Path("../../blobs") / f"hash{number}")
    assert set(Checkpoint.open(index.parent).names) == {"a", "b"}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-1.safetensors", "b": "model-3.safetensors"}, "a shard is missing"),
        ({**GOOD_MAP, "c": "model-2.safetensors"}, "c: the index names a tensor"),
        ({"a": "model-2.safetensors", "b": "model-1.safetensors"}, "a: the index names a tensor"),
        ({}, "no weight_map"),
        ({"a": 3}, "a shard is no file name; found 3"),
    ],
)
def test_index_that_does_not_fit(tmp_path: Path, weight_map: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Checkpoint.open(sharded(tmp_path, weight_map))


def test_name_in_two_shards(tmp_path: Path) -> None:
    index = sharded(tmp_path, GOOD_MAP)
    save_file({"a": np.ones(2), "b": np.ones(2)}, tmp_path / "model-2.safetensors")
    with pytest.raises(SourceError, match="a: two shards hold this tensor"):
        Checkpoint.open(index)


def test_config_of_another_directory(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", TWO)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "config.json").write_text('{"model_type": "llama"}')
    assert Checkpoint.open(tmp_path).config == {}
    ckpt = Checkpoint.open(tmp_path, config_dir=tmp_path / "configs")
    assert ckpt.config == {"model_type": "llama"}


@pytest.mark.parametrize("text", ["{", "[]", '"\udcff"'])
def test_broken_config(tmp_path: Path, text: str) -> None:
    write(tmp_path / "model.safetensors", TWO)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SourceError, match=r"config\.json: not (valid JSON|a JSON object)"):
        Checkpoint.open(tmp_path)


def test_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no weights here"):
        Checkpoint.open(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        Checkpoint.open(tmp_path / "nowhere")
    for name in ("x", "y"):
        write(tmp_path / f"{name}.safetensors", TWO)
    with pytest.raises(SourceError, match="several weight files"):
        Checkpoint.open(tmp_path)


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_damage_escapes_as_another_error(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes of a real file changed, removed or inserted: it is read within bounds, or refused."""
    whole = bytearray(len(json.dumps(TWO)).to_bytes(8, "little") + json.dumps(TWO).encode())
    whole += bytes(32)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        new = data.draw(st.sampled_from([b"", b"0", b"9", b"-", b'"', b"]", b"\xff", b"\x00\x01"]))
        whole[at : at + data.draw(st.integers(0, 2))] = new
    (tmp_path / "model.safetensors").write_bytes(whole)
    try:
        ckpt = Checkpoint.open(tmp_path)
    except SourceError:
        return
    for name in ckpt.names:
        assert ckpt.tensor(name).nbytes <= len(whole)
