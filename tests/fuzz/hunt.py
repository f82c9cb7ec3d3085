"""Damaged files through every door: the number of mutants, and whatever ends otherwise than told.

    python -m tests.fuzz.hunt --mutants 100000 [--seed 7] [--door "chat config"]

Mutant ``i`` of a door is the same in every run of a seed. The script runs each door in processes of
its own, so that an abort is a finding too and not the end; it exits with 1 when there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlc_bridge.errors import BridgeError
from tests.fuzz.doors import DOORS, Door, good, keep_children

SECONDS = 5.0
MEMORY = 1 << 30
CHUNK = 500


class TooSlow(BaseException):
    """No Exception, so that nothing on the way takes it for an ordinary one."""


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def hunt(door: Door, directory: Path, numbers: range, seed: int, seconds: float) -> dict[str, Any]:
    """``fine``, ``told``, ``slowest`` (s) and ``findings`` as (number, what happened where)."""
    file, found = directory / door.file, {"fine": 0, "told": 0, "slowest": 0.0, "findings": []}
    content = file.read_bytes()
    for number in numbers:
        file.write_bytes(door.kind(content, random.Random(f"{seed} {door.name} {number}")))
        start = time.monotonic()
        try:
            with patience(seconds):
                door.use(directory)
            found["fine"] += 1
        except BridgeError:
            found["told"] += 1
        except (Exception, TooSlow) as error:
            found["findings"].append((number, _where(error)))
        found["slowest"] = max(found["slowest"], time.monotonic() - start)
        shutil.rmtree(directory / "out", ignore_errors=True)
    file.write_bytes(content)
    return found


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "mlc_bridge" in f.filename] or frames
    return (
        f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}: {error!s:.80}"
    )


def _chunk(name: str, start: int, count: int, seed: int) -> None:
    door = next(d for d in DOORS if d.name == name)
    with tempfile.TemporaryDirectory() as work, keep_children():
        os.environ["XDG_CACHE_HOME"] = work
        directory = good(Path(work) / "good")
        found = hunt(door, directory, range(start, start + count), seed, SECONDS)
    print(json.dumps(found))


def _run_chunk(door: Door, start: int, count: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.hunt", "--chunk", door.name]
    command += [str(start), str(count), str(seed)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    out = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        ended = (start, f"the process ended with {child.returncode} within {count} mutants")
        return {"fine": 0, "told": 0, "slowest": 0.0, "findings": [ended]}
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    if usage.ru_maxrss * 1024 > MEMORY:
        found["findings"].append((start, f"{usage.ru_maxrss >> 10} MiB within {count} mutants"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--door")
    parser.add_argument("--chunk", nargs=4, help=argparse.SUPPRESS)
    wish = parser.parse_args()
    if wish.chunk:
        name, *numbers = wish.chunk
        _chunk(name, *map(int, numbers))
        return 0
    doors = [d for d in DOORS if wish.door in (None, d.name)]
    each = wish.mutants / sum(d.weight for d in doors)
    bad: Counter[str] = Counter()
    for door in doors:
        total = round(each * door.weight)
        found = [
            _run_chunk(door, start, min(CHUNK, total - start), wish.seed)
            for start in range(0, total, CHUNK)
        ]
        fine, told = (sum(f[key] for f in found) for key in ("fine", "told"))
        slowest = max(f["slowest"] for f in found)
        findings = [x for f in found for x in f["findings"]]
        bad[door.name] = len(findings)
        print(f"{door.name:20} {total:7} mutants: {told} told, {fine} harmless, "
              f"slowest {slowest:.2f} s, {len(findings)} findings", flush=True)  # fmt: skip
        for number, what in findings[:5]:
            print(f"    {number}: {what}", flush=True)
    print(f"{sum(bad.values())} findings")
    return int(any(bad.values()))


if __name__ == "__main__":
    sys.exit(main())
