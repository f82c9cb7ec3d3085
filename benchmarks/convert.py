"""Claim: converting an AWQ checkpoint costs about as much as copying it, in bounded memory.

    python -m benchmarks.convert --dir /big/disk [--shape 7b] [--rounds 3]

One run, one disk: ``cp -r`` of the checkpoint and ``convert`` of it take turns, each after ``sync``
and with the source in the page cache, neither with fsync. Resident memory is the peak of anonymous
memory (RssAnon, sampled every 5 ms): the mapped source is not in it. With ``--dense`` the source is
float16 and ``--quantization`` says what it becomes (q0f16, q4f16_1).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.synthetic import SHAPES, write_checkpoint

CONVERT = """
import json, sys
from mlc_bridge.stages.convert_weight import ConvertJob, convert_weight
report = convert_weight(ConvertJob(*sys.argv[1:]))
print(json.dumps([report.seconds, report.nbytes]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, default=None, help="where to work")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--quantization", default="q4f16_autoawq")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        work = Path(folder)
        size = write_checkpoint(work / "source", args.shape, group=None if args.dense else 128)
        _warm(work / "source")
        _table(args, size, [_round(work, args.quantization) for _ in range(args.rounds)])


def _round(work: Path, quantization: str) -> dict[str, float]:
    copied = _timed_copy(work / "source", work / "copy")
    seconds, whole, peak = _timed_convert(work / "source", work / "out", quantization)
    return {"cp": copied, "convert": seconds, "process": whole, "peak": peak}


def _timed_copy(source: Path, target: Path) -> float:
    os.sync()
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def _timed_convert(source: Path, output: Path, quantization: str) -> tuple[float, float, float]:
    os.sync()
    start = time.perf_counter()
    command = [sys.executable, "-c", CONVERT, str(source), str(output), quantization]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak: list[float] = [0.0]
        watcher = threading.Thread(target=_watch, args=(process, peak))
        watcher.start()
        said, _ = process.communicate()
        watcher.join()
    whole = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(process.returncode)
    shutil.rmtree(output)
    return json.loads(said)[0], whole, peak[0]


def _watch(process: subprocess.Popen[str], peak: list[float]) -> None:
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        for line in lines:
            if line.startswith("RssAnon"):
                peak[0] = max(peak[0], int(line.split()[1]) / 1024)
        time.sleep(0.005)


def _warm(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


def _table(args: argparse.Namespace, size: int, rounds: list[dict[str, float]]) -> None:
    kind = "float16" if args.dense else "AWQ g128"
    print(
        f"{args.shape} {kind} -> {args.quantization}, {size / 1e9:.2f} GB, {os.cpu_count()} cores"
    )
    print(f"{'':10} {'min':>8} {'median':>8} {'max':>8}")
    for key, unit in (("cp", "s"), ("convert", "s"), ("process", "s"), ("peak", "MiB")):
        values = sorted(r[key] for r in rounds)
        middle = values[len(values) // 2]
        print(f"{key:10} {values[0]:8.2f} {middle:8.2f} {values[-1]:8.2f} {unit}")
    ratios = sorted(r["convert"] / r["cp"] for r in rounds)
    print(f"{'ratio':10} {ratios[0]:8.2f} {ratios[len(ratios) // 2]:8.2f} {ratios[-1]:8.2f}")
    rate = size / 1e6 / min(r["convert"] for r in rounds)
    print(f"best: {rate:.0f} MB/s of source; convert / cp by round is the row 'ratio'")


if __name__ == "__main__":
    main()
