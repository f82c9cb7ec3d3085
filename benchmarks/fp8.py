"""What FP8 costs in perplexity, observer by observer, beside float and e5m2.

    python benchmarks/fp8.py examples/models/stdlib-llama-7m HELDOUT.txt DATASET.json \\
        --beside examples/models/stdlib-llama-7m-awq

Every row is a model built here from the same checkpoint and run over the same windows of 512
tokens; the ratio is to the float32 row of the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from mlc_bridge import (
    CompileJob,
    ConvertJob,
    GenConfigJob,
    compile_model,
    convert_weight,
    gen_config,
)
from mlc_bridge.artifact.tensor_cache import ShardWriter, read_index
from mlc_bridge.engine.runtime import Runtime
from mlc_bridge.engine.threads import start_pool
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.stages.calibrate import CALIBRATING, CalibrateJob, calibrate
from mlc_bridge.stages.observers import OBSERVERS

WINDOW = 512


def built(model: str, out: Path, scheme: str) -> Path:
    gen_config(GenConfigJob(model, out, quantization=scheme))
    convert_weight(ConvertJob(model, out, quantization=scheme))
    compile_model(CompileJob(out))
    return out


def calibrated(job: CalibrateJob, lib: Path | None) -> Path:
    """The calibrated model, with ``lib`` or one compiled for it."""
    calibrate(job)
    out = Path(job.output)
    if lib is None:
        compile_model(CompileJob(out))
    else:
        (out / "lib.so").write_bytes(lib.read_bytes())
    return out


def models(
    model: str, dataset: str, work: Path, counts: Sequence[int]
) -> Iterator[tuple[str, Path]]:
    """Name and directory of every model to be compared."""
    for scheme in ("q0f32", "q0f16", "e5m2_e5m2_f16"):
        yield scheme, built(model, work / scheme, scheme)
    source = built(model, work / "calibrating", CALIBRATING)
    lib: Path | None = None
    for count in counts:
        for observer in OBSERVERS:
            name = f"e4m3 {observer} ({count} samples)"
            job = CalibrateJob(source, work / name, dataset, num_calibration_samples=count)
            out = calibrated(replace(job, observer=observer), lib)
            lib = lib or out / "lib.so"
            yield name, out
    job = CalibrateJob(source, work / "generate", dataset, num_calibration_samples=counts[-1])
    yield f"e4m3 max ({counts[-1]} generated)", calibrated(replace(job, mode="generate"), lib)
    yield "e4m3 max, scales in bfloat16", narrowed(work / f"e4m3 max ({counts[-1]} samples)")


def others(checkpoints: Sequence[str], work: Path) -> Iterator[tuple[str, Path]]:
    """Quantized checkpoints in the scheme that holds them exactly."""
    for checkpoint in checkpoints:
        name = Path(checkpoint).name
        yield name, built(checkpoint, work / name, "auto")


def narrowed(source: Path) -> Path:
    """The same model with its float32 scales rounded to bfloat16, as MLC's files hold them."""
    import ml_dtypes

    out = source.with_name("narrowed")
    cache = read_index(source)
    with ShardWriter(out, cache.metadata) as writer:
        for name in cache.records:
            array = cache.array(name)
            if array.dtype == np.float32:
                array = array.astype(ml_dtypes.bfloat16).astype(np.float32)
            writer.add(name, array)
    for file in source.iterdir():
        if not (out / file.name).exists():
            (out / file.name).write_bytes(file.read_bytes())
    return out


def perplexity(directory: Path, text: str) -> float:
    """exp of the mean negative log likelihood per token; every window starts afresh."""
    found: list[float] = []

    def work() -> None:
        start_pool()
        runtime = Runtime.open(directory, mode="interactive")
        ids = Tokenizer(directory).encode(text)
        for start in range(0, len(ids) - 1, WINDOW):
            window = ids[start : start + WINDOW + 1]
            runtime.add(0)
            logits = runtime.score(0, window[:-1]).astype(np.float64)
            runtime.clear()
            top = logits.max(axis=1, keepdims=True)
            total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
            found.extend(total - logits[np.arange(len(window) - 1), window[1:]])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return float(np.exp(np.mean(found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("heldout")
    parser.add_argument("dataset")
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--beside", nargs="*", default=[], help="quantized checkpoints to compare")
    args = parser.parse_args()
    text = Path(args.heldout).read_text(encoding="utf-8")
    first = None
    print(f"{'model':32} {'perplexity':>10} {'to float32':>10} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as work:
        rows = models(args.model, args.dataset, Path(work), args.samples)
        for name, directory in chain(rows, others(args.beside, Path(work))):
            start = time.perf_counter()
            value = perplexity(directory, text)
            first = first or value
            seconds = time.perf_counter() - start
            print(f"{name:32} {value:10.4f} {value / first - 1:+10.3%} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
