"""Claim: a prefill in the compiled lib is not slower than PyTorch on the same cores.

    python -m benchmarks.prefill [--model examples/models/stdlib-llama-7m] [--tokens 512]
                                 [--quantization q0f32] [--dtype float32]

The same weights, tokens and work (logits of the last token) on both sides: our lib (of the scheme,
or the artifact named by ``--artifact``) and HF transformers in ``--dtype`` (if not given, bfloat16
beside ``q0bf16``, else float32) with eager and sdpa attention. Every side
runs in its own process with the same number of threads; the sides take turns for ``--rounds``
rounds. The logits are compared, so that nobody skips work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIDES = ("ours", "eager", "sdpa")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("examples/models/stdlib-llama-7m"))
    parser.add_argument("--artifact", type=Path, default=None, help="built if not given")
    parser.add_argument("--quantization", default="q0f32")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--side", choices=SIDES, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(_measure(args)))
        return
    args.dtype = args.dtype or ("bfloat16" if args.quantization == "q0bf16" else "float32")
    with tempfile.TemporaryDirectory() as folder:
        if args.artifact is None:
            args.artifact = _build(args.model, Path(folder) / "built", args.quantization)
        _table(args, [{side: _run(args, side) for side in SIDES} for _ in range(args.rounds)])


def _build(model: Path, output: Path, quantization: str) -> Path:
    from mlc_bridge import BuildJob, build

    build(BuildJob(model, output, quantization=quantization))
    return output


def _run(args: argparse.Namespace, side: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.prefill", "--side", side]
    for name in ("model", "artifact", "tokens", "dtype", "threads", "repeats"):
        command += [f"--{name}", str(getattr(args, name))]
    threads = {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(
        command, env={**os.environ, **threads}, check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    run = _ours(args) if args.side == "ours" else _torch(args)
    ids = np.random.default_rng(0).integers(10, 4000, args.tokens).tolist()
    for _ in range(2):
        logits = run(ids)
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        run(ids)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "logits": np.asarray(logits, "float64").ravel().tolist()}


def _ours(args: argparse.Namespace) -> Callable[[list[int]], Any]:
    """TVM's pool belongs to the thread that calls, so everything happens in one fresh thread."""
    from mlc_bridge.engine.runtime import Runtime
    from mlc_bridge.engine.threads import start_pool

    asked: list[list[int]] = []
    answer: list[Any] = []
    ready, turn = threading.Semaphore(0), threading.Semaphore(0)

    def work() -> None:
        start_pool(args.threads)
        runtime = Runtime.open(args.artifact)
        while turn.acquire():
            runtime.add(0)
            answer[:] = [np.array(runtime.prefill([0], asked))]
            runtime.remove(0)
            ready.release()

    threading.Thread(target=work, daemon=True).start()

    def run(ids: list[int]) -> Any:
        asked[:] = [ids]
        turn.release()
        ready.acquire()
        return answer[0]

    return run


def _torch(args: argparse.Namespace) -> Callable[[list[int]], Any]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), attn_implementation=args.side
    ).eval()

    def run(ids: list[int]) -> Any:
        with torch.inference_mode():
            out = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].float().numpy()

    return run


def _table(args: argparse.Namespace, rounds: list[dict[str, dict[str, Any]]]) -> None:
    times = {side: [t for r in rounds for t in r[side]["seconds"]] for side in SIDES}
    ours = statistics.median(times["ours"])
    print(
        f"{args.model.name}, {args.quantization}, PyTorch {args.dtype}, {args.tokens} tokens,"
        f" {args.threads} threads, milliseconds"
    )
    print(f"{'side':8} {'min':>8} {'median':>8} {'max':>8} {'tokens/s':>10} {'times ours':>11}")
    for side, seconds in times.items():
        low, mid, high = min(seconds), statistics.median(seconds), max(seconds)
        print(
            f"{side:8} {1e3 * low:8.2f} {1e3 * mid:8.2f} {1e3 * high:8.2f}"
            f" {args.tokens / mid:10.0f} {mid / ours:11.2f}"
        )
    logits = {side: np.array(rounds[0][side]["logits"]) for side in SIDES}
    for side in SIDES[1:]:
        print(f"max |logit difference| to {side}: {abs(logits['ours'] - logits[side]).max():.2e}")


if __name__ == "__main__":
    main()
