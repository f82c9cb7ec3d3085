"""``verify``: does the compiled model say what the checkpoint says?

First the weights, value by value (``compare_weights.py``): what differs there is named, and no text
is read. ``weights_only`` ends there and needs neither lib nor torch. Then behaviour: both read the
same windows of text. The reference is Hugging Face transformers in float32 with the checkpoint's
weights, dequantized by its source; the other side is the lib of the MLC directory. Compared at
every position, over the whole vocabulary:

    KL = mean sum_v p(v) (log p(v) - log q(v)),   p the reference, q the lib, in nats
    top-1 agreement, perplexity of both, largest difference of two logits

Needs torch and transformers (the extra ``torch``). Where the float32 model does not fit into memory
it is computed layer by layer (``reference.py``).
"""

from __future__ import annotations

import importlib
import inspect
import math
import platform
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.inventory import LIB_NAME
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.artifact.tokenizer_files import TokenizerFiles
from mlc_bridge.engine.runtime import Runtime
from mlc_bridge.engine.threads import start_pool
from mlc_bridge.errors import ConfigError, MissingDependency
from mlc_bridge.packing import Array
from mlc_bridge.record import Record
from mlc_bridge.sources import Checkpoint, Source
from mlc_bridge.stages import wishes
from mlc_bridge.stages.certificate import verified, write
from mlc_bridge.stages.compare_weights import compare_weights
from mlc_bridge.stages.door import door
from mlc_bridge.stages.located import located
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import described, detected, open_checkpoint
from mlc_bridge.stages.reference import WHOLE, Reference, open_reference
from mlc_bridge.stages.trace import TRACED, Depth, parted, trace
from mlc_bridge.stages.weights_report import WeightsReport

TEXTS = ("textwrap", "shlex", "fractions", "statistics")  # modules that every Python brings

DECODED = 32  # tokens of the first window that are also computed one by one
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class VerifyJob(Record):
    """``model_dir``: an MLC directory with lib; ``checkpoint``: what it was made from.

    ``text``: a file to read (default: modules of the Python library); ``tokens`` of it are compared
    in windows of ``window``. ``max_kl`` (nats), ``min_top1`` (0..1) and ``max_ppl_ratio``
    (perplexity over the reference's): what still passes.
    """

    model_dir: wishes.ArtifactPath
    checkpoint: Annotated[str | Path, "What the model was made from: directory or hub id."]
    text: Annotated[
        str | Path | None, "Text file to read; default is some of Python's own library."
    ] = None
    tokens: Annotated[int, "Positions to compare."] = 2048
    window: Annotated[int, "Tokens of one window."] = 512
    weights_only: Annotated[
        bool, "Compare the stored weights alone, without library and torch."
    ] = False
    max_memory: Annotated[
        str | None, "Memory to use, as in 8GB; beyond it the reference goes layer by layer."
    ] = None
    trace: Annotated[
        bool, "Compare the hidden states after every layer, and name the layer where they part."
    ] = False
    max_kl: Annotated[float, "KL divergence (nats) that still passes."] = 1e-3
    min_top1: Annotated[float | None, "Top-1 agreement (0 to 1) that still passes."] = None
    max_ppl_ratio: Annotated[
        float | None, "Perplexity, divided by the reference's, that still passes."
    ] = None
    model_lib: wishes.ModelLib = None
    source: wishes.SourceWeights = None
    source_format: wishes.SourceFormat = "auto"
    device: wishes.RunDevice = "auto"
    threads: wishes.Threads = None


@dataclass(frozen=True)
class Behaviour(Record):
    """Means over ``tokens`` positions; ``kl`` in nats, ``top1`` a share of 0..1."""

    tokens: Annotated[int, "Positions compared."]
    kl: Annotated[float, "Mean KL divergence from the checkpoint's own answer, nats."]
    kl_max: Annotated[float, "Largest KL divergence, nats."]
    top1: Annotated[float, "Part of the positions with the same likeliest token."]
    perplexity: Annotated[float, "Of the compiled model."]
    reference_perplexity: Annotated[float, "Of the checkpoint in float32."]
    logit_difference: Annotated[float, "Largest difference of a logit."]
    decoded: Annotated[int, "Positions also computed one token at a time."] = 0
    decode_kl: Annotated[float, "Mean KL divergence of those, nats."] = 0.0
    decode_kl_max: Annotated[float, "Largest KL divergence of those, nats."] = 0.0
    reference: Annotated[str, "How the checkpoint was computed: whole, or layer by layer."] = WHOLE

    def failures(self, job: VerifyJob) -> Iterator[str]:
        """The thresholds of ``job`` that are not met, in words."""
        if not self.kl <= job.max_kl:
            yield f"KL {self.kl:.3g}, at most {job.max_kl:g}"
        if not self.decode_kl <= job.max_kl:
            yield f"KL {self.decode_kl:.3g} token by token, at most {job.max_kl:g}"
        if job.min_top1 is not None and not self.top1 >= job.min_top1:
            yield f"top-1 agreement {self.top1:.4g}, at least {job.min_top1:g}"
        ratio = self.perplexity / self.reference_perplexity
        if job.max_ppl_ratio is not None and not ratio <= job.max_ppl_ratio:
            yield f"perplexity {ratio:.4g} times the reference's, at most {job.max_ppl_ratio:g}"


@dataclass(frozen=True)
class VerifyReport(Record):
    """First the weights; ``behaviour`` only of weights that are right."""

    passed: Annotated[bool, "Whether weights and behaviour are close enough."]
    failures: Annotated[tuple[str, ...], "What did not pass, in words."]
    weights: Annotated[WeightsReport, "The stored weights, value by value."]
    behaviour: Annotated[
        Behaviour | None, "What the library computes; None where weights differ or stand alone."
    ]
    depths: Annotated[tuple[Depth, ...], "Hidden states layer by layer, where asked for."] = ()
    parted: Annotated[str, "The layer where they part, if traced and if they do."] = ""


@dataclass
class _Sums:
    count: int = 0
    kl: float = 0.0
    kl_max: float = 0.0
    equal: int = 0
    loss: float = 0.0
    reference_loss: float = 0.0
    predicted: int = 0
    difference: float = 0.0

    def add(self, ours: Array, theirs: Array, ids: Array) -> None:
        """Logits ``[n, vocab]`` of both for one window of ids ``[n]``."""
        p, q = _log_softmax(theirs), _log_softmax(ours)
        kl = (np.exp(p) * (p - q)).sum(axis=1)
        self.count += len(ids)
        self.kl += float(kl.sum())
        self.kl_max = max(self.kl_max, float(kl.max()))
        self.equal += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        rows = np.arange(len(ids) - 1)
        self.loss -= float(q[rows, ids[1:]].sum())
        self.reference_loss -= float(p[rows, ids[1:]].sum())
        self.predicted += len(ids) - 1
        self.difference = max(self.difference, float(np.abs(ours - theirs).max()))


@door
def verify(job: VerifyJob, progress: Progress = silent) -> VerifyReport:
    """Compare. Raises ``MissingDependency``, and what checkpoint, artifact or engine raise."""
    if not job.weights_only:
        _require_torch()
    _check_thresholds(job)
    limit = nbytes_of(job.max_memory)
    job = located(job)
    windows = () if job.weights_only else _windows(job)
    ckpt, source = detected(open_checkpoint(job.checkpoint, job.source), job.source_format)
    weights = compare_weights(job.model_dir, ckpt, source, progress)
    if not weights.passed and not job.trace:
        report = VerifyReport(False, (f"weights: {weights.verdict}",), weights, None)
    elif job.weights_only:
        report = VerifyReport(True, (), weights, None)
    else:
        report = _with_behaviour(job, windows, limit, (ckpt, source), weights, progress)
    _certify(job, report)
    return report


def _with_behaviour(
    job: VerifyJob,
    windows: Sequence[Array],
    limit: int | None,
    read: tuple[Checkpoint, Source],
    weights: WeightsReport,
    progress: Progress,
) -> VerifyReport:
    size = sum(record.nbytes for record in read_index(job.model_dir).records.values())
    ids, count = len(windows[0]), len(windows)
    reference = open_reference(*read, ids, ids * count, beside=size, max_memory=limit)
    with ThreadPoolExecutor(1) as own_thread:  # TVM keeps one pool per calling thread
        ours = own_thread.submit(_Ours, job).result()
        behaviour = _behaviour(own_thread, ours, windows, reference, progress)
        depths = _traced(job, own_thread, ours, reference, windows[0], progress)
    failures = [] if weights.passed else [f"weights: {weights.verdict}"]
    failures += [*behaviour.failures(job), *filter(None, [where := parted(depths)])]
    return VerifyReport(not failures, tuple(failures), weights, behaviour, depths, where)


def _traced(
    job: VerifyJob,
    own_thread: Executor,
    ours: _Ours,
    reference: Reference,
    ids: Array,
    progress: Progress,
) -> tuple[Depth, ...]:
    if not job.trace:
        return ()

    def logits(ids: Array) -> Array:
        return own_thread.submit(ours.logits, ids).result()

    def silence(names: Sequence[str]) -> None:
        own_thread.submit(ours.silence, frozenset(names)).result()

    model = described(ChatConfig.load(job.model_dir))
    return trace(model, logits, silence, reference, ids[:TRACED], progress)


def _certify(job: VerifyJob, report: VerifyReport) -> None:
    """Note in the artifact what was found, where it was found with the artifact's own library."""
    directory = Path(job.model_dir)
    if job.model_lib is not None or (job.weights_only and report.passed):
        return  # nothing about its own library
    name = (
        str(job.text) if job.text else f"{', '.join(TEXTS)} of Python {platform.python_version()}"
    )
    about = {"name": name, "tokens": job.tokens, "window": job.window}
    found = verified(directory, directory / LIB_NAME, report, _text(job), **about)
    write(directory, "verified", found)


def _behaviour(
    own_thread: Executor,
    ours: _Ours,
    windows: Sequence[Array],
    reference: Reference,
    progress: Progress,
) -> Behaviour:
    sums, decode = _Sums(), _Sums()
    answers = reference.logits(windows, progress)
    for done, (ids, theirs) in enumerate(zip(windows, answers, strict=True)):
        progress("verify", done, len(windows))
        sums.add(own_thread.submit(ours.logits, ids).result(), theirs, ids)
        if done == 0:
            rows = own_thread.submit(ours.decoded, ids).result()
            if len(rows):
                decode.add(rows, theirs[-len(rows) :], ids[-len(rows) :])
    progress("verify", len(windows), len(windows))
    return Behaviour(
        tokens=sums.count,
        kl=sums.kl / sums.count,
        kl_max=sums.kl_max,
        top1=sums.equal / sums.count,
        perplexity=math.exp(sums.loss / sums.predicted),
        reference_perplexity=math.exp(sums.reference_loss / sums.predicted),
        logit_difference=sums.difference,
        decoded=decode.count,
        decode_kl=decode.kl / max(decode.count, 1),
        decode_kl_max=decode.kl_max,
        reference=reference.how,
    )


def _check_thresholds(job: VerifyJob) -> None:
    """Raises ConfigError for a threshold that nothing, or everything, would pass."""
    top1 = job.min_top1
    for name, value, sound in (
        ("--max-kl", job.max_kl, job.max_kl >= 0),
        ("--min-top1", top1, top1 is None or 0 <= top1 <= 1),
        ("--max-ppl-ratio", job.max_ppl_ratio, job.max_ppl_ratio is None or job.max_ppl_ratio > 0),
    ):
        if not sound:
            wanted = "0 to 1" if name == "--min-top1" else "a number above zero"
            raise ConfigError("no such threshold", where=name, found=value, expected=wanted)


def nbytes_of(text: str | None) -> int | None:
    """``8GB``, ``500 MiB`` or a plain number as bytes. Raises ConfigError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]i?b)?", text.strip().lower())
    if found is None:
        raise ConfigError("no size", where="--max-memory", found=text, expected="one as in 8GB")
    return int(float(found[1]) * UNITS[found[2] or ""])


class _Ours:
    """The compiled model; lives in one thread."""

    def __init__(self, job: VerifyJob) -> None:
        start_pool(job.threads)
        self._runtime = Runtime.open(
            job.model_dir, job.model_lib, device=job.device, mode="interactive"
        )

    def silence(self, names: Collection[str]) -> None:
        self._runtime.silence(names)

    def logits(self, ids: Array) -> Array:
        """float32 ``[n, vocab]`` of one window, from an empty cache."""
        chunk = self._runtime.limits.prefill_chunk
        self._runtime.add(0)
        parts = [
            np.array(self._runtime.score(0, ids[at : at + chunk].tolist()))
            for at in range(0, len(ids), chunk)
        ]
        self._runtime.remove(0)
        return np.concatenate(parts)

    def decoded(self, ids: Array) -> Array:
        """float32 ``[m, vocab]`` of the last m tokens one by one: other kernels than a prompt's.

        None of them where the engine would compute the sequence anew on the way.
        """
        rest = len(ids) - min(DECODED, len(ids) // 2)
        limits = self._runtime.limits
        if limits.crosses(rest, len(ids)):
            return np.empty((0, 0), np.float32)
        self._runtime.add(0)
        for at in range(0, rest, limits.prefill_chunk):
            self._runtime.prefill([0], [ids[at : min(at + limits.prefill_chunk, rest)].tolist()])
        rows = [np.array(self._runtime.decode([0], [token])[0]) for token in ids[rest:].tolist()]
        self._runtime.remove(0)
        return np.stack(rows)


def _windows(job: VerifyJob) -> Sequence[Array]:
    """int32 ids ``[window]`` each, cut from the text one after the other.

    What the tokenizer knows and the model does not (gemma-3's image token) is left out.
    """
    config = ChatConfig.load(job.model_dir)
    window = min(job.window, config.context_window_size)
    read = TokenizerFiles.read(Path(job.model_dir)).encode(_text(job))
    ids = [i for i in read if i < config.vocab_size]
    count = min(job.tokens, len(ids)) // window
    if count < 1:
        raise ConfigError(
            "not enough text to compare", found=f"{len(ids)} tokens", expected=f"at least {window}"
        )
    return list(np.array(ids[: count * window], np.int32).reshape(count, window))


def _text(job: VerifyJob) -> str:
    if job.text is None:
        return "\n".join(inspect.getsource(importlib.import_module(name)) for name in TEXTS)
    try:
        return Path(job.text).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read as text: {error}", where=job.text) from error


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _require_torch() -> None:
    for name in ("torch", "transformers"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise MissingDependency(name, "verify", "pip install 'mlc-bridge[torch]'") from None
