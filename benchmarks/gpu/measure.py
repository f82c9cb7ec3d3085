"""Check and measure the cases of a folder on the device that is there."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.cases import SUITES, Case
from benchmarks.gpu.pack import read_index, slug

CACHES = 512 << 20  # bytes of copies of what a call reads
LEAST = 0.1  # seconds of one measurement
ROUNDS = 5


def run_folder(folder: Path, minutes: float, only: str = "") -> int:
    """Measure until all is done or the time is over; 1 where something was wrong."""
    import tvm

    about = json.loads((folder / "packed.json").read_text())
    arch, device = _arch(about["archs"])
    card = device.device_name if device.type == "cuda" else "cpu"
    print(f"{card}, libraries for {arch}", flush=True)
    found: dict[str, Any] = {
        "card": str(card),
        "arch": arch,
        "date": datetime.now(UTC).date().isoformat(),
        "tvm": tvm.__version__,
        "suite": about["suite"],
        "cases": {},
        "models": {},
    }
    until, wrong, copy = time.monotonic() + 60 * minutes, [], 0.0
    for case in SUITES[about["suite"]]:
        if case.name not in about["cases"] or only not in case.name:
            continue
        if time.monotonic() > until:
            print(f"the time is over before {case.name}", file=sys.stderr)
            break
        measured = measure(case, folder / "libs" / arch / f"{slug(case)}.so", device)
        found["cases"][case.name] = measured
        wrong += [f"{case.name}: {v}" for v, m in measured.items() if not m["right"]]
        copy = copy or _rate(case, measured)
        _print(case, measured, copy)
        (folder / "measured.json").write_text(json.dumps(found, indent=1) + "\n")
    for model in sorted((folder / "models").glob("*")):
        from benchmarks.gpu.model import measure_model

        found["models"][model.name] = result = measure_model(model, arch, device)
        wrong += [] if result["right"] else [model.name]
        print(f"{model.name}: {json.dumps(result)}", flush=True)
        (folder / "measured.json").write_text(json.dumps(found, indent=1) + "\n")
    for name in wrong:
        print(f"WRONG: {name}", file=sys.stderr)
    return 1 if wrong else 0


def _arch(archs: list[str]) -> tuple[str, Any]:
    """The newest of the folder's architectures that this device runs."""
    import tvm

    gpu = tvm.cuda(0)
    if archs == ["llvm"]:
        return "llvm", tvm.cpu()
    if not gpu.exist:
        sys.exit(f"no CUDA device here, and the folder is for {', '.join(archs)}")
    here = int(gpu.compute_version.replace(".", ""))

    def number(arch: str) -> int:
        return int("".join(filter(str.isdigit, arch)))

    fits = [a for a in archs if (number(a) == here if a[-1].isalpha() else number(a) <= here)]
    if not fits:
        sys.exit(f"this device is sm_{here}, the folder is for {', '.join(archs)}")
    return max(fits, key=lambda a: (number(a), a)), gpu


def measure(case: Case, library: Path, device: Any) -> dict[str, Any]:
    """Variant -> seconds (median of rounds), error and whether it is right."""
    import tvm

    module = tvm.runtime.load_module(str(library))
    calls = _Calls(case, device)
    measured = {}
    for variant, about in read_index(library).items():
        run = calls.of(module[about["function"]])
        run()
        error = calls.error()
        measured[variant] = {
            "error": error,
            "right": bool(error <= case.limit),
            "seconds": _seconds(run, device),
            "predicted": about["predicted"],
            "choice": about["choice"],
        }
    return measured


class _Calls:
    """A case's arguments on the device, what it reads in rotating copies."""

    def __init__(self, case: Case, device: Any) -> None:
        import tvm

        self.expected = case.expected()
        results = iter(case.results())
        given = [next(results) if a is None else a for a in case.inputs()]
        first = [tvm.runtime.tensor(a, device) if isinstance(a, np.ndarray) else a for a in given]
        self.out = next(a for a, i in zip(first, case.inputs(), strict=True) if i is None)
        size = sum(given[i].nbytes for i in case.rotating)
        copies = max(1, min(64, CACHES // size)) if device.type == "cuda" else 1
        sets = [first]
        for _ in range(copies - 1):
            more = list(first)
            for i in case.rotating:
                more[i] = tvm.runtime.empty(given[i].shape, str(given[i].dtype), device)
                first[i].copyto(more[i])
            sets.append(more)
        self.sets = itertools.cycle(sets)

    def of(self, function: Any) -> Callable[[], Any]:
        return lambda: function(*next(self.sets))

    def error(self) -> float:
        """Largest difference over largest value."""
        got = self.out.numpy().astype(np.float64)
        if not np.isfinite(got).all():
            return float("inf")
        return float(np.abs(got - self.expected).max() / np.abs(self.expected).max())


def _seconds(run: Callable[[], Any], device: Any) -> float:
    """Of one call among many that are queued."""
    device.sync()
    start = time.perf_counter()
    run()
    device.sync()
    once = max(time.perf_counter() - start, 1e-6)
    count = max(3, min(200, int(LEAST / ROUNDS / once)))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            run()
        device.sync()
        times.append((time.perf_counter() - start) / count)
    return statistics.median(times)


def _rate(case: Case, measured: dict[str, Any]) -> float:
    """Bytes a second of the fastest variant."""
    return case.traffic / min(m["seconds"] for m in measured.values())


def _print(case: Case, measured: dict[str, Any], copy: float) -> None:
    for variant, m in sorted(measured.items(), key=lambda item: item[1]["seconds"]):
        rate = case.traffic / m["seconds"]
        p = m["predicted"]
        plan = ", ".join(f"{k} {v:g}" for k, v in p.items() if k != "bytes")
        print(
            f"{case.name:40} {variant:28} {m['seconds'] * 1e6:9.1f} us {rate / 1e9:7.0f} GB/s "
            f"{rate / copy:4.0%} of the copy {case.work / m['seconds'] / 1e12:6.1f} TFLOP/s "
            f"error {m['error']:.1e}{'' if m['right'] else ' WRONG'}{f' ({plan})' if p else ''}",
            flush=True,
        )
