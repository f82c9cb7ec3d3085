"""Kill runs at random moments and look at what is left: nothing may be lost or taken for whole.

    python -m benchmarks.kills [--runs 200] [--seed 0]
                               [--stages gen-config convert build compile calibrate]

Each run is a child of one warm process and gets SIGKILL, SIGTERM or SIGINT at a random moment of
its work. Then: the checkpoint and a file of the user in the output are as they were; weights (from
compile a library) that pass for whole are those of a run without a kill, byte for byte; and after
every third kill the same run without a kill gives just the bytes of the first and leaves nothing
else behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.synthetic import Shape, write_checkpoint
from mlc_bridge import (
    BuildJob,
    CalibrateJob,
    CompileJob,
    ConvertJob,
    GenConfigJob,
    build,
    calibrate,
    compile_model,
    convert_weight,
    gen_config,
)
from mlc_bridge.artifact.inventory import LIB_NAME
from mlc_bridge.artifact.tensor_cache import INDEX, read_index
from mlc_bridge.artifact.workspace import WEIGHTS_WORK, WORK
from mlc_bridge.errors import BridgeError

# About 60 MB, several shards.
SHAPE = Shape(hidden=1024, layers=6, heads=8, kv_heads=4, inner=2816, vocab=8192)
SCHEME = "q4f16_autoawq"
EXAMPLE = Path(__file__).parents[1] / "examples/models/stdlib-llama-7m-awq"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DATA = Path(__file__).parents[1] / "tests/golden/fp8/calibration_sharegpt.json"
MINE = ".mine"
LEFT = (WORK, WEIGHTS_WORK, f".{LIB_NAME}.*", ".calibration-state.npz")
BAD = ("source changed", "damaged", "lost", "differs")
Stage = Callable[[Path, Path], object]

STAGES: dict[str, Stage] = {
    "gen-config": lambda model, out: gen_config(GenConfigJob(model, out, SCHEME)),
    "convert": lambda model, out: convert_weight(ConvertJob(model, out, SCHEME)),
    "build": lambda model, out: build(BuildJob(model, out, SCHEME)),
    "compile": lambda model, out: compile_model(CompileJob(model, out / LIB_NAME, cache=False)),
    "calibrate": lambda model, out: calibrate(
        CalibrateJob(model, out, str(DATA), num_calibration_samples=2)
    ),
}


def checkpoint(home: Path, stage: str) -> Path:
    """What the stage reads: weights of several shards, with a tokenizer where one is needed; for
    build the example, whose library is compiled once; for compile and calibrate its MLC directory.
    """
    model = home / "checkpoint"
    if stage == "build":
        return shutil.copytree(EXAMPLE, model)
    if stage == "compile":
        gen_config(GenConfigJob(EXAMPLE, model))
        return model
    if stage == "calibrate":
        float_model = EXAMPLE.with_name("stdlib-llama-7m")
        build(BuildJob(float_model, model, "e4m3_e4m3_f16_max_calibrate"))
        return model
    model.mkdir()
    write_checkpoint(model, SHAPE, shard_bytes=16 << 20)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (EXAMPLE / name).exists():
            shutil.copy(EXAMPLE / name, model / name)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def child(stage: Stage, model: Path, out: Path) -> int:
    """Start a run in a child; how a command line ends on a signal."""
    pid = os.fork()
    if pid:
        return pid
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        stage(model, out)
        os._exit(0)
    except BaseException:
        os._exit(1)


def fresh(out: Path) -> Path:
    """An output that holds nothing but a file of the user."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out / MINE).write_text("mine")
    return out


def killing(name: str, home: Path, runs: int, seed: int) -> Counter[str]:
    """Counts of what was seen; those of ``BAD`` must be 0."""
    stage, rng, seen = STAGES[name], random.Random(seed), Counter[str]()
    model, out = checkpoint(home, name), home / "out"
    start = time.monotonic()
    if os.waitpid(child(stage, model, fresh(home / "whole")), 0)[1]:
        raise SystemExit(f"{name}: fails without a kill")
    took = time.monotonic() - start
    whole, source = contents(home / "whole"), contents(model)
    for number in range(runs):
        if number % 3 == 0:
            fresh(out)
        pid = child(stage, model, out)
        time.sleep(rng.uniform(0, took))
        os.kill(pid, rng.choice(SIGNALS))
        seen["killed"] += os.waitpid(pid, 0)[1] != 0
        seen["source changed"] += contents(model) != source
        seen["damaged"] += _damaged(out, whole)
        seen["lost"] += (out / MINE).read_text() != "mine"
        seen["left work"] += any(any(out.glob(work)) for work in LEFT)
        if number % 3 == 2:
            os.waitpid(child(stage, model, out), 0)
            seen["rerun"] += 1
            seen["differs"] += contents(out) != whole
    return seen


def _damaged(out: Path, whole: dict[str, bytes]) -> bool:
    """Whether what passes for weights is not what a whole run writes."""
    if not (out / INDEX).exists() and not (out / LIB_NAME).exists():
        return False
    try:
        if (out / INDEX).exists():
            read_index(out, md5=True)
    except BridgeError:
        return True
    return any(name in whole and data != whole[name] for name, data in contents(out).items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    args = parser.parse_args()
    found = {}
    for stage in args.stages:
        with tempfile.TemporaryDirectory(prefix="kills-") as home:
            found[stage] = killing(stage, Path(home), args.runs // len(args.stages), args.seed)
    print(json.dumps(found, indent=1))
    raise SystemExit(any(seen[word] for seen in found.values() for word in BAD))


if __name__ == "__main__":
    main()
