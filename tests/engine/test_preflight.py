"""Whatever would hang or crash MLC's own engine is refused by name before ours starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_bridge.artifact.manifest import check_lib
from mlc_bridge.artifact.tensor_cache import ShardWriter, read_index
from mlc_bridge.engine import EngineConfig, MLCEngine
from mlc_bridge.engine.library import check_cpu
from mlc_bridge.engine.memory import available_memory, require_memory
from mlc_bridge.engine.parameters import check_calibrated
from mlc_bridge.engine.threads import allowed_cpus, physical_cpus, start_pool
from mlc_bridge.errors import ArtifactError, BridgeError, EngineError

pytestmark = pytest.mark.slow

Copy = Callable[[], Path]


def replace(path: Path, content: str | bytes) -> None:
    path.unlink()
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    replace(path, json.dumps(data))


def rewritten(
    source: Path, out: Path, change: Callable[[str, np.ndarray], np.ndarray | None]
) -> None:
    """The weights of ``source`` under ``out``, each tensor as ``change`` gives it (None drops
    it).
    """
    cache = read_index(source)
    metadata = dict(cache.metadata)
    for file in [*out.glob("params_shard_*.bin"), out / "tensor-cache.json"]:
        file.unlink()
    with ShardWriter(out, metadata) as writer:
        for name in cache.records:
            if (array := change(name, cache.array(name))) is not None:
                writer.add(name, array)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    replace(path, bytes(data))


def exchanged(index: dict[str, Any]) -> None:
    """Two norms of equal shape under each other's name."""
    norms = [r for s in index["records"] for r in s["records"] if "layernorm" in r["name"]]
    norms[0]["name"], norms[1]["name"] = norms[1]["name"], norms[0]["name"]


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda d: (d / "mlc-chat-config.json").unlink(), "mlc-chat-config.json"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json"),
    "no index": (lambda d: (d / "tensor-cache.json").unlink(), "tensor-cache.json"),
    "no shard": (lambda d: (d / "params_shard_0.bin").unlink(), "params_shard_0.bin"),
    "short shard": (lambda d: replace(d / "params_shard_0.bin", b"123"), "params_shard_0.bin"),
    "flipped bit": (lambda d: flip(d / "params_shard_0.bin"), "params_shard_0.bin: damaged"),
    "other index": (
        lambda d: edit_json(d / "tensor-cache.json", exchanged),
        "tensor-cache.json: d",
    ),
    "no lib": (lambda d: (d / "lib.so").unlink(), "no compiled lib"),
    "lib is text": (lambda d: replace(d / "lib.so", "{}"), "not a shared library"),
    "lib is cut": (
        lambda d: replace(d / "lib.so", (d / "lib.so").read_bytes()[:5000]),
        "the lib is cut off",
    ),
    "lib is a header": (
        lambda d: replace(d / "lib.so", (d / "lib.so").read_bytes()[:40]),
        "not a 64-bit shared library",
    ),
    "lib of another kind": (
        lambda d: replace(d / "lib.so", Path(np._core._multiarray_umath.__file__).read_bytes()),
        "not a lib that tvm can load",
    ),
    "vocab in one place": (
        lambda d: edit_json(d / "mlc-chat-config.json", lambda c: c.update(vocab_size=5000)),
        "vocab_size",
    ),
    "vocab in both places": (
        lambda d: edit_json(
            d / "mlc-chat-config.json",
            lambda c: (c.update(vocab_size=5000), c["model_config"].update(vocab_size=5000)),
        ),
        "another vocabulary",
    ),
    "template is a name": (
        lambda d: edit_json(d / "mlc-chat-config.json", lambda c: c.update(conv_template="chatml")),
        "conv_template",
    ),
    "other fingerprint": (
        lambda d: edit_json(
            d / "tensor-cache.json",
            lambda c: c["metadata"]["mlc_bridge"].update(fingerprint="0" * 64),
        ),
        "different builds",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_artifacts_are_refused_by_name(copy_of: Copy, case: str) -> None:
    spoil, words = SPOILED[case]
    directory = copy_of()
    spoil(directory)
    with pytest.raises(BridgeError, match=words):
        MLCEngine(directory)


NORM = "model.layers.3.input_layernorm.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda name, a: None if name == NORM else a,
        lambda name, a: a[:-1] if name == NORM else a,
        lambda name, a: a.astype(np.float16) if name == NORM else a,
    ],
    ids=["missing", "shape", "dtype"],
)
def test_weights_of_another_build_are_refused(artifact: Path, copy_of: Copy, change: Any) -> None:
    directory = copy_of()
    rewritten(artifact, directory, change)
    with pytest.raises(ArtifactError, match=NORM):
        MLCEngine(directory)


def test_a_lib_may_have_any_name_if_it_is_the_only_one(copy_of: Copy) -> None:
    directory = copy_of()
    (directory / "lib.so").rename(directory / "model.so")
    with MLCEngine(directory) as engine:
        assert engine.model_lib == directory / "model.so"
    (directory / "other.so").symlink_to(directory / "model.so")
    with pytest.raises(ArtifactError, match=r"model\.so, other\.so"):
        MLCEngine(directory)
    with pytest.raises(ArtifactError, match="no such model lib"):
        MLCEngine(directory, model_lib=directory / "nothing.so")


@pytest.mark.parametrize(("device", "words"), [("cuda", "compiled for cpu"), ("toaster", "device")])
def test_wrong_device(artifact: Path, device: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        MLCEngine(artifact, device=device)


def test_uncalibrated_scale() -> None:
    name = "model.layers.0.mlp.down_proj.q_calibration_scale"
    check_calibrated(name, np.array([0.5], np.float32))
    with pytest.raises(ArtifactError, match=r"down_proj.*never calibrated"):
        check_calibrated(name, np.array([np.nan], np.float32))


def test_broken_weights_are_found_by_the_first_token(artifact: Path, copy_of: Copy) -> None:
    directory = copy_of()
    rewritten(artifact, directory, lambda name, a: np.full_like(a, np.nan) if name == NORM else a)
    with pytest.raises(ArtifactError, match="logits that are not finite"):
        MLCEngine(directory)


def test_one_broken_answer_is_not_the_others(artifact: Path, copy_of: Copy) -> None:
    def spoil(name: str, array: np.ndarray) -> np.ndarray:
        if name != "model.embed_tokens.weight":
            return array
        array = array.copy()
        array[7] = np.nan
        return array

    directory = copy_of()
    rewritten(artifact, directory, spoil)
    with MLCEngine(directory) as engine:
        for _ in range(2):
            with pytest.raises(EngineError, match="logits are not finite"):
                engine.completions.create(prompt=[5, 7, 9], max_tokens=4)
        response = engine.completions.create(prompt=[5, 6, 9], max_tokens=4, temperature=0.0)
        assert response.usage.completion_tokens == 4


def test_a_lib_for_another_processor(engine: MLCEngine) -> None:
    path, here = engine.model_lib, Path("/proc/cpuinfo").read_text()
    flag = re.findall(r"^(?:flags|Features)\s*:.* (\w+)", here, re.MULTILINE)[0]
    check_cpu({"mlc_bridge": {"cpu_flags": [flag]}}, path)
    check_cpu({}, path)
    with pytest.raises(ArtifactError, match="another processor; found no avx9000 here"):
        check_cpu({"mlc_bridge": {"cpu_flags": [flag, "avx9000"]}}, path)


def test_a_model_larger_than_the_memory() -> None:
    free = available_memory()
    assert free is not None
    assert free > 1 << 20
    require_memory(1 << 20, "the weights")
    with pytest.raises(ArtifactError, match=r"do not fit.*GB available"):
        require_memory(1 << 60, "the weights")


def test_check_lib_accepts_a_lib_without_fingerprint(artifact: Path) -> None:
    cache = read_index(artifact)
    params = [{"name": r.name, "shape": r.shape, "dtype": r.dtype} for r in cache.records.values()]
    check_lib({"params": params}, artifact)


def in_fresh_thread(call: Callable[[], Any]) -> Any:
    """Results or errors of ``call`` in a thread that has run no kernel yet."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append(call())
        except BaseException as error:
            box.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return box[0]


def test_pool_has_the_physical_cores_whatever_tvm_thinks(engine: MLCEngine) -> None:
    assert engine.threads == len(physical_cpus())
    assert in_fresh_thread(start_pool) == len(physical_cpus())
    assert in_fresh_thread(lambda: start_pool(1)) == 1
    too_many = in_fresh_thread(lambda: start_pool(len(allowed_cpus()) + 1))
    assert isinstance(too_many, EngineError)


def test_pool_is_right_after_a_kernel_ran_elsewhere_and_under_any_environment() -> None:
    """A process whose main thread already has TVM's one-thread pool, with variables that say
    one.
    """
    code = """
import os, threading, tvm
tvm.get_global_func("runtime.NumThreads")()
from mlc_bridge.engine.threads import physical_cpus, start_pool
def tasks(): return len(os.listdir("/proc/self/task"))
def run():
    before = tasks()
    print(start_pool(), len(physical_cpus()), tasks() - before)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    env = {**os.environ, "TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[2])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    threads, cores, workers = map(int, out.stdout.split())
    assert threads == cores
    assert workers == threads - 1


def test_limits_follow_mode_and_config(artifact: Path) -> None:
    with MLCEngine(artifact, mode="interactive") as engine:
        assert (engine.limits.max_batch, engine.limits.total) == (1, 2048)
    with MLCEngine(artifact, mode="server") as engine:
        assert engine.limits.max_batch > 8
    config = EngineConfig(max_num_sequence=2, max_total_sequence_length=512, prefill_chunk_size=64)
    with MLCEngine(artifact, engine_config=config) as engine:
        found = engine.limits
        assert (found.max_batch, found.total, found.context_window) == (2, 512, 512)
        assert found.prefill_chunk == 64
