"""Torch files without torch: what it saves is read, what could run code or mislead is refused."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutants import opened_outcome, shapes_of, weights

from mlc_bridge.errors import SourceError
from mlc_bridge.sources import SOURCES, Checkpoint, detect

GOLDEN = Path(__file__).parents[1] / "golden" / "sources" / "llm-awq"
Q = "model.layers.0.self_attn.q_proj"
torch = pytest.importorskip("torch")


def saved(tmp_path: Path, state: Any, name: str = "pytorch_model.bin", **options: Any) -> Path:
    torch.save(state, tmp_path / name, **options)
    return tmp_path


def test_reads_what_torch_saves(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "f16": torch.randn(3, 5).half(),
        "bf16": torch.randn(7).bfloat16(),
        "f64": torch.randn(2, 2, dtype=torch.float64),
        "i16": torch.randint(-99, 99, (3, 4), dtype=torch.int16),
        "i64": torch.tensor([1 << 40, -1]),
        "bool": torch.tensor([True, False]),
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "same storage": base,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    ckpt = Checkpoint.open(saved(tmp_path, OrderedDict(state)))
    assert set(ckpt.names) == set(state)
    for name, wanted in state.items():
        got = ckpt.tensor(name)
        assert not got.flags.writeable or got.size == 0
        assert got.shape == tuple(wanted.shape)
        assert np.array_equal(got.astype(np.float64), wanted.detach().double().numpy())
        assert str(got.dtype) == str(wanted.dtype).removeprefix("torch.")


def test_module_state_dict_is_a_dense_checkpoint(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4)).half()
    ckpt = Checkpoint.open(saved(tmp_path, module.state_dict()))
    assert detect(ckpt).name == "dense"
    assert detect(ckpt, "huggingface-torch").name == "dense"
    assert np.array_equal(SOURCES["dense"].read(ckpt, "0"), module[0].weight.detach().numpy())


class Evil:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


def archive(tmp_path: Path, pickled: bytes, compress: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", compress) as z:
        z.writestr("archive/data.pkl", pickled)
        z.writestr("archive/data/0", bytes(64))
    return tmp_path


@pytest.mark.parametrize(
    "call", [(exec, "open('ran', 'w')"), (eval, "1"), (__import__, "os"), (getattr, "", "x")]
)
def test_code_does_not_run(tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    archive(tmp_path, pickle.dumps({"a": Evil(*call)}, protocol=2))
    with pytest.raises(SourceError, match=r"no part of a state dict; found \w*builtin") as error:
        Checkpoint.open(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert not (tmp_path / "ran").exists()


class Words(pickle._Pickler):
    """A pickler whose persistent ids are the storages named by strings."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.args if isinstance(obj, Stored) else None


class Stored:
    def __init__(self, *args: Any) -> None:
        self.args = args


def claims(offset: Any, shape: Any, stride: Any, key: str = "0") -> bytes:
    """A float32 tensor that claims this place in a storage of 64 bytes."""
    storage = Stored("storage", torch.FloatStorage, key, "cpu", 16)
    out = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    tensor = Evil(rebuild, storage, offset, shape, stride, False, OrderedDict())
    Words(out, protocol=2).dump({"a": tensor})
    return out.getvalue()


def test_honest_claim(tmp_path: Path) -> None:
    ckpt = Checkpoint.open(archive(tmp_path, claims(4, (3, 4), (4, 1))))
    assert ckpt.tensor("a").tolist() == np.zeros((3, 4)).tolist()


@pytest.mark.parametrize(
    "claim",
    [
        (0, (17,), (1,)),
        (5, (3, 4), (4, 1)),
        (-1, (4,), (1,)),
        (0, (-4,), (1,)),
        (8, (4,), (-2,)),
        (0, (1 << 40,), (0,)),
        (0, (2, 2), (1 << 60, 1)),
        (0, (4,), (1, 1)),
        (0, (4, 4), (4,)),
        (0, (4,), (1,), "../../etc"),
    ],
)
def test_tensor_outside_its_storage(tmp_path: Path, claim: Any) -> None:
    with pytest.raises(SourceError, match="a: the tensor does not fit its storage"):
        Checkpoint.open(archive(tmp_path, claims(*claim)))


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"garbage",
        pickle.dumps([1, 2]),
        pickle.dumps({"a": 1}),
        pickle.dumps({1: 2}),
        claims("x", (1,), (1,)),
        claims(0, (1,), (1,))[:-9],
        # BUILD on a word itself: a storage type is a plain string and takes no state.
        b"\x80\x02ctorch\nFloatStorage\n}X\x01\x00\x00\x00xK\x01sb.",
    ],
)
def test_pickles_that_are_no_state_dict(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(SourceError, match=r"pytorch_model\.bin: (the pickle|the file is no state)"):
        Checkpoint.open(archive(tmp_path, pickled))


def test_other_containers(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="compressed, encrypted or there twice"):
        Checkpoint.open(archive(tmp_path, claims(0, (4,), (1,)), zipfile.ZIP_DEFLATED))
    saved(tmp_path, {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(SourceError, match=r"not a torch file of the zip form.*torch 1\.6"):
        Checkpoint.open(tmp_path)
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as z:
        z.writestr("archive/other", b"")
    with pytest.raises(SourceError, match=r"no data\.pkl"):
        Checkpoint.open(tmp_path)


def test_truncated(tmp_path: Path) -> None:
    whole = (GOLDEN / "v2-g64-bf16" / "w4-g64-awq-v2.pt").read_bytes()
    for end in range(0, len(whole), 997):
        (tmp_path / "x.pt").write_bytes(whole[:end])
        with pytest.raises(SourceError):
            Checkpoint.open(tmp_path)


def llm_awq_v1(tmp_path: Path, case: str) -> Checkpoint:
    """The tensors of an AutoAWQ file as llm-awq's first version saved them: no config."""
    source = Checkpoint.open(GOLDEN.parent / case)
    arrays = {n: torch.from_numpy(source.tensor(n).copy()) for n in source.names}
    return Checkpoint.open(saved(tmp_path, arrays, "w4-awq.pt"))


@pytest.mark.parametrize(
    "case", [f"autoawq{v}/w4-g{g}" for v in ("", "-gemv") for g in (32, 64, 128)]
)
def test_llm_awq_version_1(tmp_path: Path, case: str) -> None:
    ckpt = llm_awq_v1(tmp_path, case)
    source = detect(ckpt)
    assert source.name == "llm-awq"
    assert detect(ckpt, "awq").name == "llm-awq"
    expected = Checkpoint.open(GOLDEN.parent / case / "expected.safetensors")
    source.check(ckpt, Q, (64, 256))
    q = source.read(ckpt, Q)
    assert np.array_equal(q.codes.unpack(), expected.tensor(f"{Q}.codes"))
    assert np.array_equal(q.zero.unpack(), expected.tensor(f"{Q}.zeros"))
    assert q.block[1] == int(case.rpartition("g")[2])
    with pytest.raises(SourceError, match="qweight: wrong shape"):
        source.check(ckpt, Q, (64, 512))


def test_header_and_directory_must_agree(tmp_path: Path) -> None:
    """One bit of every byte that is no member's data: the same weights, or a refusal."""
    case = GOLDEN / "v2-g64-bf16"
    (file,) = case.glob("*.pt")
    raw, shapes = file.read_bytes(), shapes_of(case)
    wanted = weights(Checkpoint.open(case), shapes)
    data: set[int] = set()
    with zipfile.ZipFile(file) as z:
        for info in z.infolist():
            lengths = struct.unpack_from("<HH", raw, info.header_offset + 26)
            begin = info.header_offset + 30 + sum(lengths)
            data |= set(range(begin, begin + info.file_size))
    got = set()
    for at in set(range(len(raw))) - data:
        flipped = bytearray(raw)
        flipped[at] ^= 1 << at % 8
        (tmp_path / file.name).write_bytes(flipped)
        got.add(opened_outcome(tmp_path / file.name, shapes, wanted))
    assert got == {"same", "refused"}


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo place 2147483647"),
        (b"\x80\x02}q\x00K\x01\x85q\x01h\x01\x86.", "a tuple is used twice"),
        (b"\x80\x02K\x012\x86.", "the opcode DUP"),
    ],
)
def test_few_bytes_that_would_become_much(tmp_path: Path, pickled: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Checkpoint.open(archive(tmp_path, pickled))


def test_zip_of_a_later_version(tmp_path: Path) -> None:
    file = archive(tmp_path, pickle.dumps({}, protocol=2)) / "pytorch_model.bin"
    raw = bytearray(file.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 6] = 99  # the version needed to extract
    file.write_bytes(raw)
    with pytest.raises(SourceError, match="zip file version 9"):
        Checkpoint.open(tmp_path)
