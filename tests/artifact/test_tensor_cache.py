"""The weights on disk: TVM's own writer and reader agree with ours; damage and refusal are told."""

import errno
import hashlib
import json
import os
import random
import signal
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlc_bridge.artifact import tensor_cache
from mlc_bridge.artifact.inventory import INVENTORY
from mlc_bridge.artifact.tensor_cache import INDEX, ShardWriter, read_index
from mlc_bridge.artifact.workspace import WEIGHTS_WORK
from mlc_bridge.errors import ArtifactError

DTYPES = ("float16", "uint32", "int8", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float32")


def tensors(seed=0, shapes=((3, 5), (7,), (2, 3, 4), (1, 1), (16, 8), (5,), (4, 4))):
    rng = np.random.default_rng(seed)
    made = {}
    for i, (dtype, shape) in enumerate(zip(DTYPES, shapes, strict=True)):
        values = rng.integers(0, 100, shape) if i in (1, 2) else rng.normal(size=shape)
        made[f"layer.{i}.{dtype}"] = values.astype(tensor_cache.dtype_of(dtype))
    return made


def write(directory, arrays, **kw):
    with ShardWriter(directory, **kw) as writer:
        for name, array in arrays.items():
            writer.add(name, array)
    return json.loads((directory / INDEX).read_text())


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_every_dtype_comes_back(tmp_path):
    arrays = tensors()
    write(tmp_path, arrays)
    cache = read_index(tmp_path, md5=True)
    assert list(cache.records) == list(arrays)
    for name, array in arrays.items():
        assert same(cache.array(name), array)


def test_strided_views_and_reinterpreted_words(tmp_path):
    words = np.arange(24, dtype=np.int32).reshape(4, 6) - 12
    with ShardWriter(tmp_path) as writer:
        writer.add("turned", words.T)
        writer.add("every_second", words[:, ::2])
        writer.add("words", words, dtype="uint32")
        writer.add("scalar", np.float16(3).reshape(()))
    cache = read_index(tmp_path)
    assert same(cache.array("turned"), np.ascontiguousarray(words.T))
    assert same(cache.array("every_second"), np.ascontiguousarray(words[:, ::2]))
    assert same(cache.array("words"), words.view(np.uint32))
    assert cache.array("scalar").shape == ()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes=st.lists(st.sampled_from((1, 1000, 200_000, 262_143, 262_144, 262_145, 600_000)),
                      min_size=1, max_size=9))  # fmt: skip
def test_shards_are_those_of_tvm(tmp_path_factory, sizes):
    """Same records, offsets, shard numbers and md5 as TVM's writer, around half and full cap."""
    tvmjs = pytest.importorskip("tvm.contrib.tvmjs")
    rng = np.random.default_rng(1)
    arrays = {f"p{i}": rng.normal(size=n).astype(np.float16) for i, n in enumerate(sizes)}
    theirs, ours = tmp_path_factory.mktemp("tvm"), tmp_path_factory.mktemp("ours")
    tvmjs.dump_tensor_cache(arrays, str(theirs), shard_cap_mb=1, show_progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_cache, "SHARD_CAP", 1 << 20)
        index = write(ours, arrays)
    assert index["records"] == json.loads((theirs / INDEX).read_text())["records"]
    for shard in index["records"]:
        name = shard["dataPath"]
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # TVM's reader
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tvm_reads_ours(tmp_path):
    tvm = pytest.importorskip("tvm")
    from tvm.contrib import tvmjs

    arrays = {k: v for k, v in tensors().items() if not v.dtype.name.startswith(("bf", "float8"))}
    write(tmp_path, arrays)
    loaded, _ = tvmjs.load_tensor_cache(str(tmp_path), tvm.cpu())
    for name, array in arrays.items():
        assert same(loaded[name].numpy(), array), name


def test_we_read_tvm_with_float32_stored_as_bfloat16(tmp_path):
    tvmjs = pytest.importorskip("tvm.contrib.tvmjs")
    arrays = {"f32": np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)}
    tvmjs.dump_tensor_cache(arrays, str(tmp_path), show_progress=False)
    expected = arrays["f32"].astype(ml_dtypes.bfloat16).astype(np.float32)
    assert same(read_index(tmp_path, md5=True).array("f32"), expected)


def test_the_older_index_name_is_read(tmp_path):
    write(tmp_path, tensors())
    (tmp_path / INDEX).rename(tmp_path / "ndarray-cache.json")
    assert len(read_index(tmp_path).records) == len(DTYPES)


def test_md5_only_on_wish(tmp_path):
    index = write(tmp_path, tensors(), md5=False)
    assert "md5sum" not in index["records"][0]
    read_index(tmp_path, md5=True)
    index = write(tmp_path, tensors())
    data = (tmp_path / "params_shard_0.bin").read_bytes()
    assert index["records"][0]["md5sum"] == hashlib.md5(data).hexdigest()


def test_metadata_may_be_filled_late(tmp_path):
    with ShardWriter(tmp_path, {"a": 1}) as writer:
        writer.add("x", np.ones(3, np.float16))
        writer.metadata["b"] = writer.nbytes
    assert read_index(tmp_path).metadata == {"a": 1, "b": 6}


def test_a_repeated_name_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"x: .*twice"):
        write_twice(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_twice(directory):
    with ShardWriter(directory) as writer:
        writer.add("x", np.ones(3, np.float16))
        writer.add("x", np.ones(3, np.float16))


def write_and_interrupt(directory):
    with ShardWriter(directory) as writer:
        writer.add("x", np.ones(3, np.float16))
        raise KeyboardInterrupt


def test_a_failed_run_leaves_the_old_artifact_alone(tmp_path):
    write(tmp_path, tensors())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        write_and_interrupt(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_failure_while_publishing_takes_everything_back(tmp_path, monkeypatch):
    write(tmp_path, tensors())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    replace = os.replace

    def broken(source, target):
        if source.name == INDEX and target.parent == tmp_path and "replaced" not in str(source):
            raise OSError(errno.EBUSY, "busy")
        replace(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(ArtifactError, match="busy"):
        write(tmp_path, tensors(1))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_new_artifact_replaces_a_larger_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_cache, "SHARD_CAP", 64)
    write(tmp_path, tensors())
    shards = len(list(tmp_path.glob("params_shard_*.bin")))
    write(tmp_path, {"x": np.ones(3, np.float16)})
    assert shards > 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [INVENTORY, "params_shard_0.bin", INDEX]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    stale = tmp_path / WEIGHTS_WORK
    stale.mkdir()
    (stale / "pending.bin").write_bytes(b"half")
    write(tmp_path, tensors())
    assert not stale.exists()
    read_index(tmp_path, md5=True)


def test_two_writers_do_not_share_a_directory(tmp_path):
    with (
        ShardWriter(tmp_path) as first,
        pytest.raises(ArtifactError, match="another run"),
        ShardWriter(tmp_path),
    ):
        pass
    assert first.records == {}


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ArtifactError, match=r"out/model: cannot write.*Choose another output"):
        write(tmp_path / "out" / "model", tensors())
    assert (tmp_path / "out").read_text() == "a file"


def test_disk_full_is_said(tmp_path, monkeypatch):
    def full(file, array):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_cache, "_write", full)
    with pytest.raises(ArtifactError, match=r"No space left.*Free space"):
        write(tmp_path / "a" / "b", tensors())
    assert list(tmp_path.iterdir()) == []


def test_no_threads_stay_behind(tmp_path):
    write(tmp_path, tensors())
    assert not [t for t in threading.enumerate() if t.name.startswith("shard-md5")]


def test_no_weights_is_said(tmp_path):
    with pytest.raises(ArtifactError, match=r"no weights here.*tensor-cache.json"):
        read_index(tmp_path)


def edited(tmp_path, edit):
    write(tmp_path, tensors())
    index = json.loads((tmp_path / INDEX).read_text())
    edit(index["records"][0])
    (tmp_path / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda s: s.update(dataPath="../params_shard_0.bin"), "no plain file"),
        (lambda s: s.update(format="tar"), "no plain file"),
        (lambda s: s.update(nbytes=s["nbytes"] + 1), "damaged weights"),
        (lambda s: s.update(dataPath="params_shard_9.bin"), "no such file"),
        (lambda s: s["records"][0].update(shape=[3, 6]), "layer.0.float16: .*expected 36"),
        (lambda s: s["records"][0].update(dtype="complex3"), "unknown dtype"),
        (lambda s: s["records"][-1].update(byteOffset=1 << 20), "outside its shard"),
        (lambda s: s["records"][-1].update(byteOffset=-4), "outside its shard"),
        (lambda s: s["records"].pop(), "leaves bytes of a shard to no tensor"),
        (lambda s: s["records"].pop(0), "layer.1.uint32: .*a gap before.*byte 30, expected 0"),
        (lambda s: s["records"][1].update(byteOffset=29), "an overlap with"),
        (lambda s: shifted(s["records"], -2), "outside its shard"),
        (lambda s: shifted(s["records"], 2), "a gap before"),
        (lambda s: s["records"][0].update(dtype="datetime64"), "unknown dtype"),
        (lambda s: s["records"][0].update(format="f32-to-f16"), "records.0.records.0.format"),
        (lambda s: s["records"][0].update(nbytes="30"), "records.0.records.0.nbytes"),
        (lambda s: s["records"][0].update(shape=[1e400]), "records.0.records.0.shape.0"),
        (lambda s: s.update(dataPath="x" * 5000), "no such file"),
        (lambda s: s.update(dataPath="a\0b"), "no plain file"),
        (lambda s: s["records"].append(s["records"][0]), "twice"),
        (lambda s: s["records"][0].pop("byteOffset"), "cannot be read"),
        (lambda s: s.update(records=7), "cannot be read"),
    ],
)
def test_a_damaged_index_is_named(tmp_path, edit, said):
    edited(tmp_path, edit)
    with pytest.raises(ArtifactError, match=said):
        read_index(tmp_path)


def shifted(records, by):
    for record in records:
        record["byteOffset"] += by


def leaves(value, path=()):
    """Every number, text and list of a JSON value, as the way to it."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))


def mutated(index, rng):
    """One value of the index changed, dropped, doubled or exchanged with another."""
    way = rng.choice([path for path in leaves(index) if path[0] == "records"])
    place = index
    for key in way[:-1]:
        place = place[key]
    old, key = place[way[-1]], way[-1]
    small = rng.choice((-8, -2, -1, 1, 2, 8, 1 << 40))
    new = rng.choice((old + small if isinstance(old, int) else [old], None, -1, 1.5, "x", [], {}))
    match rng.randrange(4):
        case 0:
            del place[key]
        case 1 if isinstance(place, list):
            place.insert(rng.randrange(len(place) + 1), old)
        case 2 if isinstance(place, list):
            rng.shuffle(place)
        case _:
            place[key] = new


@pytest.mark.parametrize("listed", [True, False])
def test_a_changed_index_is_refused_or_gives_the_same_weights(tmp_path, monkeypatch, listed):
    """A thousand of each: with our list any change, without it any that lengths can show."""
    monkeypatch.setattr(tensor_cache, "SHARD_CAP", 64)
    text = json.dumps(write(tmp_path, tensors()))
    whole = read_index(tmp_path)
    before = {name: whole.array(name).tobytes() for name in whole.records}
    if not listed:
        (tmp_path / INVENTORY).unlink()
    rng, refused = random.Random(11), 0
    for number in range(1000):
        index = json.loads(text)
        mutated(index, rng)
        (tmp_path / INDEX).write_text(json.dumps(index))
        try:
            found = read_index(tmp_path)
            found.prove(md5=False)
        except ArtifactError:
            refused += 1
            continue
        assert not listed or index == json.loads(text), number
        for name, data in before.items():  # a parameter of another name is missed by the lib
            if name in found.records and found.records[name].dtype == whole.records[name].dtype:
                assert found.array(name).tobytes() == data, (number, name)
    assert refused > 600


def test_a_short_or_changed_shard_is_named(tmp_path):
    write(tmp_path, tensors())
    shard = tmp_path / "params_shard_0.bin"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    read_index(tmp_path)
    with pytest.raises(ArtifactError, match=r"params_shard_0.bin: damaged.*md5"):
        read_index(tmp_path, md5=True)
    shard.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=r"params_shard_0.bin: damaged.*bytes"):
        read_index(tmp_path)


def test_ctrl_c_between_tensors_and_the_handler_of_before(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_until_signal(out)
    assert not out.exists()
    assert signal.getsignal(signal.SIGINT) is before


def write_until_signal(directory):
    with ShardWriter(directory) as writer:
        writer.add("a", np.ones(3, np.float16))
        signal.raise_signal(signal.SIGINT)  # held: the tensor below is the one refused
        assert writer.nbytes == 6
        writer.add("b", np.ones(3, np.float16))


def test_ctrl_c_while_publishing_comes_after_it(tmp_path, monkeypatch):
    publish = ShardWriter._publish

    def interrupted(writer):
        signal.raise_signal(signal.SIGINT)
        publish(writer)

    monkeypatch.setattr(ShardWriter, "_publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, tensors())
    assert len(read_index(tmp_path, md5=True).records) == len(DTYPES)
