"""Runs the calibration lib over the samples and counts what its layers see.

The lib calls ``mlc_bridge.observe(layer, x, out)`` before every quantized linear. The virtual
machine looks the function up when it is loaded, so it is registered just for that moment, and its
results go to the ``Observation`` that was passed in, nowhere else.

``forced`` runs prefill whole samples, answers included. ``generate`` runs prefill the prompts and
let the model answer, as long as the sample's own answer. Samples are grouped into batches
beforehand, from their lengths alone; a batch is the unit of progress, saving and resuming, so that
a run that was interrupted ends with the same counts as one that was not.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from mlc_bridge.engine.runtime import Runtime
from mlc_bridge.engine.sampler import Sampler, Sampling
from mlc_bridge.packing import Array
from mlc_bridge.schemes.fp8 import OBSERVE
from mlc_bridge.stages.calibration_data import Sample
from mlc_bridge.stages.observers import Histogram
from mlc_bridge.stages.progress import Progress

Mode = Literal["forced", "generate"]
SAVE_SECONDS = 5.0


@dataclass
class Observation:
    """What has been counted so far: layer -> histogram, after ``batches`` batches."""

    layers: dict[str, Histogram] = field(default_factory=dict)
    batches: int = 0

    def see(self, layer: str, x: Array) -> None:
        self.layers.setdefault(layer, Histogram()).add(x)


@dataclass(frozen=True)
class Generation:
    """How answers are drawn in mode ``generate``."""

    temperature: float
    top_p: float
    seed: int
    stop: frozenset[int]


@contextmanager
def observing(observation: Observation) -> Iterator[None]:
    """While a lib is loaded here, its observer calls go to ``observation`` for ever after."""
    import tvm_ffi

    def observe(layer: str, x: Any, out: Any) -> None:
        values = np.from_dlpack(x) if x.device.type == "cpu" else x.numpy()
        observation.see(str(layer), values)
        out.copyfrom(x)

    tvm_ffi.register_global_func(OBSERVE, observe, override=True)
    try:
        yield
    finally:
        tvm_ffi.registry.remove_global_func(OBSERVE)


def batches(samples: Sequence[Sample], sequences: int, tokens: int) -> list[list[int]]:
    """Sample numbers in groups of at most ``sequences``, together at most ``tokens`` long."""
    groups: list[list[int]] = []
    room = 0
    for number, sample in enumerate(samples):
        length = len(sample.ids)
        if not groups or len(groups[-1]) == sequences or length > room:
            groups.append([])
            room = tokens
        groups[-1].append(number)
        room -= length
    return groups


@dataclass
class Run:
    """One calibration: samples through the model, batch by batch, counts into ``observation``.

    ``state`` is the file that holds the counts of an unfinished run; ``key`` says of which run.
    """

    runtime: Runtime
    samples: Sequence[Sample]
    observation: Observation
    generation: Generation | None
    state: Path
    key: str

    def __call__(self, progress: Progress, stop: threading.Event) -> None:
        """Continue where the saved state ends; saves every few seconds and when told to stop."""
        limits = self.runtime.limits
        groups = batches(self.samples, limits.max_batch, min(limits.prefill_chunk, limits.total))
        lengths = [sum(len(self.samples[i].ids) for i in group) for group in groups]
        self._resume()
        saved = time.monotonic()
        for number in range(self.observation.batches, len(groups)):
            progress("calibrate", sum(lengths[:number]), sum(lengths))
            if stop.is_set() or time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
            if stop.is_set():
                return
            self._batch(groups[number])
            self.observation.batches = number + 1
        progress("calibrate", sum(lengths), sum(lengths))

    def save(self) -> None:
        """Write the state beside its place, then rename: never half a file."""
        layers = self.observation.layers
        temp = self.state.with_name(self.state.name + ".part")
        temp.parent.mkdir(parents=True, exist_ok=True)
        head = {
            "key": self.key,
            "batches": self.observation.batches,
            "layers": {name: (seen.kind, seen.largest) for name, seen in layers.items()},
        }
        with temp.open("wb") as file:
            counts = np.array([seen.counts for seen in layers.values()])
            np.savez_compressed(file, head=np.array(json.dumps(head)), counts=counts)
        temp.replace(self.state)

    def _resume(self) -> None:
        """Take up a saved state of the very same run; any other is left behind."""
        try:
            with self.state.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                head, counts = json.loads(str(saved["head"])), saved["counts"]
        except (OSError, ValueError, KeyError, BadZipFile):
            return
        if head["key"] != self.key:
            return
        self.observation.batches = head["batches"]
        for (name, (kind, largest)), row in zip(head["layers"].items(), counts, strict=True):
            self.observation.layers[name] = Histogram(kind, row.copy(), largest)

    def _batch(self, group: Sequence[int]) -> None:
        samples = [self.samples[i] for i in group]
        sequences = list(range(len(group)))
        for sequence in sequences:
            self.runtime.add(sequence)
        if self.generation is None:
            self._prefill(sequences, [s.ids for s in samples])
        else:
            logits = self._prefill(sequences, [s.prompt or s.ids[:1] for s in samples])
            self._generate(group, logits, [s.answer for s in samples])
        self.runtime.clear()

    def _prefill(self, sequences: Sequence[int], runs: Sequence[Sequence[int]]) -> Array:
        """Runs longer than one prefill step stand alone in their batch and go in steps."""
        chunk = self.runtime.limits.prefill_chunk
        if sum(map(len, runs)) <= chunk:
            return self.runtime.prefill(sequences, runs)
        (run,) = runs
        starts = range(0, len(run), chunk)
        return [self.runtime.prefill(sequences, [run[i : i + chunk]]) for i in starts][-1]

    def _generate(self, group: Sequence[int], logits: Array, lengths: Sequence[int]) -> None:
        """Answers to a batch; each sample has its own random numbers, whatever runs beside it."""
        assert self.generation is not None
        how = self.generation
        sampling = Sampling(temperature=how.temperature, top_p=how.top_p)
        samplers = [Sampler(sampling, how.seed * 1_000_003 + number) for number in group]
        active = [i for i, length in enumerate(lengths) if length > 0]
        rows: dict[int, Array] = {i: logits[i] for i in active}
        drawn = dict.fromkeys(active, 0)
        while active:
            tokens = {i: samplers[i].next(rows[i])[0] for i in active}
            drawn = {i: drawn[i] + 1 for i in active}
            active = [i for i in active if tokens[i] not in how.stop and drawn[i] < lengths[i]]
            if active:
                out = self.runtime.decode(active, [tokens[i] for i in active])
                rows = {i: out[place].copy() for place, i in enumerate(active)}


def in_own_thread(work: Callable[[threading.Event], None]) -> None:
    """Call ``work`` in a thread of its own, as TVM's pool wants; Ctrl-C sets its event."""
    stop = threading.Event()
    failure: list[BaseException] = []

    def body() -> None:
        try:
            work(stop)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="mlc-bridge-calibrate")
    thread.start()
    try:
        thread.join()
    except BaseException:
        stop.set()
        thread.join()
        raise
    if failure:
        raise failure[0]
