"""Claim: decode runs near the memory's speed, and prefill at the arithmetic's, beside llama.cpp.

    python -m benchmarks.decode --dir /big/disk --shape 1b [--llama-python VENV/bin/python]

Synthetic models of one shape on the same cores: ours is AWQ (group 128, float16 head and norms)
compiled for this machine, llama.cpp's is Q4_0 with a Q6_K head (its usual file), repacked for the
vector unit at load. The sides take turns in processes of their own. The bound is the bytes that a
decode step must read (all weights but the embedding) over the best read stream measured in between;
on a shared machine the stream itself varies, so compare it with its spread.
Without ``--llama-python`` (an environment with ``llama-cpp-python`` and ``gguf``) ours runs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.synthetic import SHAPES, write_checkpoint

PROMPT = 16
SIDES = ("ours", "llama.cpp", "stream")
Times = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where models are built and kept")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--prefills", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--llama-python", type=Path, default=None)
    parser.add_argument("--side", choices=SIDES, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(_stream(args) if args.side == "stream" else _in_fresh_thread(args)))
        return
    _build(args)
    sides = [s for s in SIDES if s != "llama.cpp" or args.llama_python]
    rounds = [{side: _run(args, side) for side in sides} for _ in range(args.rounds)]
    _table(args, {s: _together([r[s] for r in rounds]) for s in sides})


def _artifact(args: argparse.Namespace) -> Path:
    return Path(args.dir) / f"{args.shape}-q4f16_autoawq"


def _build(args: argparse.Namespace) -> None:
    from mlc_bridge import BuildJob, build

    checkpoint, artifact = args.dir / f"{args.shape}-awq", _artifact(args)
    if not (checkpoint / "config.json").exists():
        write_checkpoint(checkpoint, args.shape)
    if not (artifact / "lib.so").exists():
        build(BuildJob(checkpoint, artifact, "q4f16_autoawq", conv_template="chatml"))


def _run(args: argparse.Namespace, side: str) -> Times:
    numbers = ["--shape", args.shape, "--batches", *map(str, args.batches)]
    for name in ("steps", "tokens", "prefills", "threads"):
        numbers += [f"--{name}", str(getattr(args, name))]
    if side == "llama.cpp":
        model = str(args.dir / f"{args.shape}-q4_0.gguf")
        command = [str(args.llama_python), "-m", "benchmarks.llamacpp", model, *numbers]
    else:
        command = [sys.executable, "-m", "benchmarks.decode", "--side", side]
        command += ["--dir", str(args.dir), *numbers]
    threads = {"TVM_NUM_THREADS": str(args.threads), "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(
        command, env={**os.environ, **threads}, check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _stream(args: argparse.Namespace) -> Times:
    from benchmarks.bandwidth import ReadStream

    stream = ReadStream(args.threads, 1.0)
    stream.seconds_per_gigabyte()
    return {"GB/s": [1 / stream.seconds_per_gigabyte() for _ in range(12)]}


def _in_fresh_thread(args: argparse.Namespace) -> Times:
    """TVM's pool belongs to the thread that makes it."""
    result: Times = {}
    worker = threading.Thread(target=lambda: result.update(_ours(args)))
    worker.start()
    worker.join()
    return result


def _ours(args: argparse.Namespace) -> Times:
    from mlc_bridge.engine import EngineConfig, Runtime
    from mlc_bridge.engine.threads import start_pool

    start_pool(args.threads)
    runtime = Runtime.open(_artifact(args), config=EngineConfig(max_num_sequence=max(args.batches)))
    result: Times = {}
    for batch in args.batches:
        sequences, times = list(range(batch)), []
        for sequence in sequences:
            runtime.add(sequence)
        runtime.prefill(sequences, [[5] * PROMPT] * batch)
        for step in range(args.steps + 3):
            start = time.perf_counter()
            logits = runtime.decode(sequences, [7 + step] * batch)
            times.append(time.perf_counter() - start)
        if not np.isfinite(logits).all():
            raise RuntimeError("the model answered with NaN")
        runtime.clear()
        result[f"decode {batch}"] = times[3:]
    times = []
    for _ in range(args.prefills):
        runtime.add(0)
        start = time.perf_counter()
        runtime.prefill([0], [[5] * args.tokens])
        times.append(time.perf_counter() - start)
        runtime.clear()
    result[f"prefill {args.tokens}"] = times
    return result


def _together(rounds: list[Times]) -> Times:
    return {name: [t for r in rounds for t in r[name]] for name in rounds[0]}


def _step_bytes(args: argparse.Namespace) -> int:
    """Bytes of the weights that a decode step reads: all but the embedding's other rows."""
    index = json.loads((_artifact(args) / "tensor-cache.json").read_text())
    records = [record for shard in index["records"] for record in shard["records"]]
    return sum(r["nbytes"] for r in records if "embed_tokens" not in r["name"])


def _table(args: argparse.Namespace, sides: dict[str, Times]) -> None:
    rates_read, nbytes = sides["stream"]["GB/s"], _step_bytes(args)
    speed, mid = max(rates_read), statistics.median(rates_read)
    bound = speed * 1e9 / nbytes
    print(f"{args.shape} shape, {args.threads} threads, AWQ g128; tokens/s of the median step")
    print(f"read stream {min(rates_read):.1f} / {mid:.1f} / {speed:.1f} GB/s (min / median / max)")
    print(f"a step reads {nbytes / 1e6:.0f} MB: at most {bound:.1f} tokens/s at batch 1")
    print(f"{'':14}{'side':10}{'min ms':>9}{'median':>9}{'max':>9}{'tokens/s':>10}{'ratio':>8}")
    for name in sides["ours"]:
        kind, count = name.split()
        rates = {}
        for side in (s for s in sides if s != "stream"):
            ms = [1e3 * t for t in sides[side][name]]
            mid = statistics.median(ms)
            rates[side] = 1e3 * int(count) / mid
            ratio = f"{rates['ours'] / rates[side]:8.2f}" if side != "ours" else ""
            print(
                f"{name:14}{side:10}{min(ms):9.2f}{mid:9.2f}{max(ms):9.2f}"
                f"{rates[side]:10.1f}{ratio}"
            )
        if kind == "decode" and count == "1":
            print(f"{'':14}of the bandwidth bound: {rates['ours'] / bound:.0%}")


if __name__ == "__main__":
    main()
