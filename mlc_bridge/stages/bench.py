"""``bench``: how fast a compiled model is on this machine, min / median / max of several runs.

    prefill   tokens of one prompt per second, from an empty cache
    decode    tokens per second of all sequences together, one token each per step, after a prompt
    read      bytes of weights per decoded step (without the embedding, of which a step reads a row)
              and second: what the memory has to deliver

Sampling, tokenizer and chat template are left out. Run it on an idle machine: TVM's threads wait
for each other, so anything else on the cores shows at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.engine.runtime import Runtime
from mlc_bridge.engine.threads import start_pool
from mlc_bridge.models import MODELS
from mlc_bridge.record import Record
from mlc_bridge.stages import wishes
from mlc_bridge.stages.door import door
from mlc_bridge.stages.located import located
from mlc_bridge.stages.progress import Progress, silent


@dataclass(frozen=True)
class BenchJob(Record):
    """``batch``: sequences in the second decode measurement (1 leaves it out)."""

    model_dir: wishes.ArtifactPath
    model_lib: wishes.ModelLib = None
    device: wishes.RunDevice = "auto"
    threads: wishes.Threads = None
    prompt_tokens: Annotated[int, "Tokens of the prompt."] = 512
    decode_tokens: Annotated[int, "Tokens to decode."] = 64
    batch: Annotated[int, "Sequences decoded together."] = 4
    repeats: Annotated[int, "Runs of each measurement."] = 5


@dataclass(frozen=True)
class Speed(Record):
    """Tokens per second: slowest, median, fastest run; ``read`` in GB/s at the median."""

    name: Annotated[str, "What was measured."]
    min: Annotated[float, "Tokens per second, slowest run."]
    median: Annotated[float, "Tokens per second, median run."]
    max: Annotated[float, "Tokens per second, fastest run."]
    read: Annotated[float | None, "Weights read at the median, GB/s."] = None


@dataclass(frozen=True)
class BenchReport(Record):
    threads: Annotated[int, "Threads that ran the kernels."]
    device: Annotated[str, "Device that ran them."]
    nbytes: Annotated[int, "Bytes of weights read for one token."]
    speeds: Annotated[tuple[Speed, ...], "Every measurement."]


@door
def bench(job: BenchJob, progress: Progress = silent) -> BenchReport:
    """Measure. Raises what the artifact and the engine raise."""
    job = located(job)
    with ThreadPoolExecutor(1) as own_thread:  # TVM keeps one pool per calling thread
        return own_thread.submit(_bench, job, progress).result()


def _bench(job: BenchJob, progress: Progress) -> BenchReport:
    threads = start_pool(job.threads)
    runtime = Runtime.open(job.model_dir, job.model_lib, device=job.device, mode="server")
    limits = runtime.limits
    prompt = min(job.prompt_tokens, limits.prefill_chunk, limits.context_window - job.decode_tokens)
    nbytes = _read_per_step(job.model_dir)
    ids = np.random.default_rng(0).integers(0, runtime.vocab_size, prompt).tolist()
    speeds = []
    steps: list[tuple[str, Callable[[], float], bool]] = [
        (f"prefill, {prompt} tokens", partial(_prefill, runtime, ids), False)
    ]
    for count in dict.fromkeys((1, min(job.batch, limits.max_batch))):
        name = f"decode, {count} sequence{'s' * (count > 1)}"
        steps.append((name, partial(_decode, runtime, ids, count, job.decode_tokens), True))
    for done, (name, run, decoding) in enumerate(steps):
        progress("bench", done, len(steps))
        run()  # pages touched, frequencies up
        rates = [run() for _ in range(job.repeats)]
        batch = int(name.split()[1]) if decoding else 1
        read = median(rates) / batch * nbytes / 1e9 if decoding else None
        speeds.append(Speed(name, min(rates), median(rates), max(rates), read))
    progress("bench", len(steps), len(steps))
    return BenchReport(threads, str(runtime.library.device), nbytes, tuple(speeds))


def _read_per_step(directory: str | Path) -> int:
    """Bytes of all weights but an embedding that is not the head too."""
    records, apart = read_index(directory).records, _separate_embedding(directory)
    return sum(r.nbytes for name, r in records.items() if name.rpartition(".")[0] not in apart)


def _separate_embedding(directory: str | Path) -> set[str]:
    """Its path in the weight table; nothing for an architecture that is not ours."""
    chat = ChatConfig.load(directory)
    if chat.model_type not in MODELS:
        return set()
    arch = MODELS[chat.model_type]
    weights = arch.weights(arch.config({**chat.arch_config, "linear_layers": ()}))
    tied = not any(w.role == "lm_head" for w in weights)
    return set() if tied else {w.path for w in weights if w.role == "embedding"}


def _prefill(runtime: Runtime, ids: list[int]) -> float:
    runtime.add(0)
    start = time.perf_counter()
    runtime.prefill([0], [ids])
    seconds = time.perf_counter() - start
    runtime.clear()
    return len(ids) / seconds


def _decode(runtime: Runtime, ids: list[int], sequences: int, tokens: int) -> float:
    numbers = list(range(sequences))
    for number in numbers:
        runtime.add(number)
        runtime.prefill([number], [ids[:32]])
    start = time.perf_counter()
    for step in range(tokens):
        runtime.decode(numbers, [ids[step % len(ids)]] * sequences)
    seconds = time.perf_counter() - start
    runtime.clear()
    return sequences * tokens / seconds
