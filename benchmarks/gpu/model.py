"""A whole model on the device: the same logits as a CPU's lib gives, and time of its steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

TOKENS, STEPS = 48, 16
LIMIT = 0.02  # of logits, relative to the largest: two float16 roads


def answers(directory: Path, library: Path, device: str, output: Path | None = None) -> Any:
    """Logits after a prompt and after each of a few tokens that follow; times of both."""
    from mlc_bridge.engine.runtime import Runtime

    runtime = Runtime.open(directory, library, device=device)
    rng = np.random.default_rng(0)
    ids = rng.integers(3, runtime.vocab_size, TOKENS + STEPS).tolist()
    runtime.add(0)
    logits = [np.asarray(runtime.prefill([0], [ids[:TOKENS]]))]
    times = []
    for token in ids[TOKENS:]:
        start = time.perf_counter()
        logits.append(np.asarray(runtime.decode([0], [token])))
        times.append(time.perf_counter() - start)
    found = np.concatenate(logits)
    if output is not None:
        np.savez(output, logits=found)
    return found, float(np.median(times))


def measure_model(directory: Path, arch: str, device: Any) -> dict[str, Any]:
    """Compare with what was packed."""
    kind = "cpu" if device.type == "cpu" else "cuda"
    got, seconds = answers(directory, directory / f"{arch}.so", kind)
    wanted = np.load(directory / "expected.npz")["logits"]
    error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    return {"error": error, "right": bool(error < LIMIT), "decode_seconds": seconds}
