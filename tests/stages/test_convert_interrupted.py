"""Interruption at any moment: the output either does not exist or is complete; a rerun succeeds."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlc_bridge.artifact import tensor_cache
from mlc_bridge.artifact.journal import JOURNAL
from mlc_bridge.artifact.tensor_cache import INDEX
from mlc_bridge.artifact.workspace import WEIGHTS_WORK
from mlc_bridge.errors import ArtifactError
from mlc_bridge.stages import weight_encoding
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed
from benchmarks.synthetic import Shape, write_checkpoint

# About 60 MB, several shards; a run takes about a third of a second.
SHAPE = Shape(hidden=1024, layers=6, heads=8, kv_heads=4, inner=2816, vocab=8192)
RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight
print("begin", flush=True)
convert_weight(ConvertJob(sys.argv[1], sys.argv[2], "q4f16_autoawq", md5=True))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    home = tmp_path_factory.mktemp("source")
    write_checkpoint(home, SHAPE, shard_bytes=16 << 20)
    return home


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    convert_weight(ConvertJob(source, out, "q4f16_autoawq", md5=True))
    return contents(out)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def start(source, out):
    command = [sys.executable, "-c", RUN, str(source), str(out)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begin\n"
    return process


def interrupt(process, delay, signal_number):
    time.sleep(delay)
    process.send_signal(signal_number)
    process.communicate(timeout=60)
    return process.returncode


def test_killed_at_any_moment_then_run_again():
    """A few of ``benchmarks/kills.py``, which does as many as one likes."""
    command = [sys.executable, "-m", "benchmarks.kills", "--runs", "36", "--seed", "7"]
    ran = subprocess.run(
        [*command, "--stages", "gen-config", "convert"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr or ran.stdout
    for seen in json.loads(ran.stdout).values():
        assert seen["killed"] >= 4
        assert seen["rerun"] == 6


def test_ctrl_c_leaves_nothing_or_everything(source, whole, tmp_path):
    rng = random.Random(8)
    nothing = 0
    for i in range(10):
        out = tmp_path / str(i)
        interrupt(start(source, out), rng.uniform(0, 0.25), signal.SIGINT)
        nothing += not out.exists()
        assert not out.exists() or contents(out) == whole
    assert nothing >= 2


def stopped(source, out, nbytes, how):
    """Convert in a child until ``nbytes`` are written, then ``how``."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tensor_cache.WORTH_KEEPING = 1 << 20

        def progress(stage, done, total):
            if done >= nbytes:
                os.kill(os.getpid(), how)

        try:
            convert_weight(ConvertJob(source, out, "q4f16_autoawq", md5=True), progress)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)


def again(source, out, monkeypatch, wish="q4f16_autoawq"):
    """The run that goes on: what it converted, and what it reports."""
    converted = []
    encode = weight_encoding._encode

    def spied(plan, weight, requantize, ready):
        if ready is None:
            converted.append(weight.path)
        return encode(plan, weight, requantize, ready)

    monkeypatch.setattr(weight_encoding, "_encode", spied)
    report = convert_weight(ConvertJob(source, out, wish, md5=True))
    monkeypatch.undo()
    return converted, replace(report, output=None, seconds=0)


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    job = ConvertJob(source, tmp_path_factory.mktemp("expected"), "q4f16_autoawq", md5=True)
    return replace(convert_weight(job), output=None, seconds=0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_goes_on_at_the_last_finished_shard(source, whole, expected, tmp_path, monkeypatch, how):
    out = tmp_path / "out"
    stopped(source, out, 50 << 20, how)
    assert (out / WEIGHTS_WORK / "params_shard_0.bin").exists()
    assert not (out / INDEX).exists()
    converted, report = again(source, out, monkeypatch)
    assert 0 < len(converted) < 30
    assert report == expected
    assert contents(out) == whole


@pytest.mark.parametrize("spoil", ["shard", "journal", "source", "scheme"])
def test_what_is_not_as_it_was_is_not_taken_over(
    source, whole, expected, tmp_path, monkeypatch, spoil
):
    own, out = shutil.copytree(source, tmp_path / "own"), tmp_path / "out"
    stopped(own, out, 50 << 20, signal.SIGKILL)
    kept, wish = out / WEIGHTS_WORK, "q4f16_autoawq"
    if spoil == "shard":
        for shard in kept.glob("params_shard_*.bin"):
            data = bytearray(shard.read_bytes())
            data[len(data) // 2] ^= 1
            shard.write_bytes(data)
    elif spoil == "journal":
        (kept / JOURNAL).write_bytes((kept / JOURNAL).read_bytes()[:200])
    elif spoil == "source":
        os.utime(own / "config.json")
    else:
        wish = "q4f16_autoawq_g64"
    converted, report = again(own, out, monkeypatch, wish)
    assert len(converted) == len(set(converted)) == 3 + 6 * SHAPE.layers
    if wish == "q4f16_autoawq":
        listed = "mlc-bridge.json"  # names the copy of the source
        found, wanted = contents(out), dict(whole)
        assert json.loads(found.pop(listed))["files"] == json.loads(wanted.pop(listed))["files"]
        assert (report, found) == (expected, wanted)
    assert not kept.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 8 MiB, where mounting is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def roomy(path):
    return SimpleNamespace(free=1 << 40)


def test_disk_full(source, small_disk, monkeypatch):
    """Too small a disk is seen before; one that fills up meanwhile is cleaned up after."""
    job = ConvertJob(source, small_disk / "out", "q4f16_autoawq")
    with pytest.raises(ArtifactError, match=r"found 8 MB free, expected 70 MB.*Free space"):
        convert_weight(job)
    monkeypatch.setattr(shutil, "disk_usage", roomy)
    with pytest.raises(ArtifactError, match=r"No space left on device.*Free space"):
        convert_weight(job)
    assert list(small_disk.iterdir()) == []


def test_read_only_disk(source, small_disk, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", roomy)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ArtifactError, match=r"Read-only file system.*Choose another output"):
        convert_weight(ConvertJob(source, small_disk / "out", "q4f16_autoawq"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_directory_not_writable(source, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="Permission denied"):
        convert_weight(ConvertJob(source, tmp_path / "out", "q4f16_autoawq"))


def test_a_file_in_the_way(source, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArtifactError, match=r"out: .*Choose another output"):
        convert_weight(ConvertJob(source, tmp_path / "out", "q4f16_autoawq"))
    assert (tmp_path / "out").read_text() == "mine"
