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
import platform
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from mlc_bridge.artifact.chat_config import ChatConfig
from mlc_bridge.artifact.inventory import LIB_NAME
from mlc_bridge.artifact.place import model_directory
from mlc_bridge.artifact.tensor_cache import read_index
from mlc_bridge.artifact.tokenizer_files import TokenizerFiles
from mlc_bridge.errors import ConfigError, MissingDependency
from mlc_bridge.packing import Array
from mlc_bridge.record import Record
from mlc_bridge.sources import Checkpoint
from mlc_bridge.stages import wishes
from mlc_bridge.stages.behaviour import Answers, Behaviour, measure
from mlc_bridge.stages.certificate import is_origin, verified, write
from mlc_bridge.stages.compare_artifacts import compare_artifacts
from mlc_bridge.stages.compare_weights import compare_weights
from mlc_bridge.stages.compiled_model import CompiledModel
from mlc_bridge.stages.door import door
from mlc_bridge.stages.kept_reference import KeptReference
from mlc_bridge.stages.located import located
from mlc_bridge.stages.progress import Progress, silent
from mlc_bridge.stages.recognise import described, detected, open_checkpoint
from mlc_bridge.stages.reference import open_reference
from mlc_bridge.stages.trace import TRACED, Depth, compared, parted
from mlc_bridge.stages.verify_page import write_page
from mlc_bridge.stages.weights_report import WeightsReport

TEXTS = ("textwrap", "shlex", "fractions", "statistics")  # modules that every Python brings

WINDOW, CROSSING, AFFORDED = 512, 64, 2048
"""Tokens of a window, beyond a turning point, and of the longest window that is taken unasked."""
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class VerifyJob(Record):
    """``model_dir``: an MLC directory with lib; ``checkpoint``: what it was made from, or
    ``against``: another MLC directory.

    ``text``: a file to read (default: modules of the Python library); ``tokens`` of it are compared
    in windows of ``window``. ``max_kl`` (nats), ``min_top1`` (0..1) and ``max_ppl_ratio``
    (perplexity over the reference's): what still passes.
    """

    model_dir: wishes.ArtifactPath
    checkpoint: Annotated[
        str | Path | None, "What the model was made from: directory or hub id."
    ] = None
    against: Annotated[
        str | Path | None, "Another MLC directory to compare with, in place of a checkpoint."
    ] = None
    text: Annotated[
        str | Path | None, "Text file to read; default is some of Python's own library."
    ] = None
    tokens: Annotated[int, "Positions to compare."] = 2048
    window: Annotated[
        int | None, "Tokens of one window; default 512, or what crosses the model's own windows."
    ] = None
    weights_only: Annotated[
        bool, "Compare the stored weights alone, without library and torch."
    ] = False
    max_memory: Annotated[
        str | None, "Memory to use, as in 8GB; beyond it the reference goes layer by layer."
    ] = None
    keep_reference: Annotated[
        str | Path | None, "Folder to keep the reference's logits in, for the next time."
    ] = None
    page: Annotated[str | Path | None, "HTML file to write the report to, with plots."] = None
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
    notes: Annotated[tuple[str, ...], "What was not looked at."] = ()


@door
def verify(job: VerifyJob, progress: Progress = silent) -> VerifyReport:
    """Compare. Raises ``MissingDependency``, and what checkpoint, artifact or engine raise."""
    if (job.checkpoint is None) == (job.against is None):
        raise ConfigError(
            "nothing to compare with" if job.checkpoint is None else "two things to compare with",
            expected="one of --checkpoint and --against",
        )
    if not job.weights_only and job.against is None:
        _require_torch()
    _check_thresholds(job)
    limit = nbytes_of(job.max_memory)
    job = located(job)
    window, notes = window_of(job)
    job = replace(job, window=window)
    windows = () if job.weights_only else _windows(job, window)
    other = _against(job) if job.against is not None else _checkpoint(job, windows, limit)
    weights = other.weights(job.model_dir, progress)
    if job.weights_only or not (weights.passed or job.trace):
        failures = () if weights.passed else (f"weights: {weights.verdict}",)
        report = VerifyReport(weights.passed, failures, weights, None)
    else:
        with other.opened() as reference:
            report = _with_behaviour(job, windows, reference, weights, progress)
        report = replace(report, notes=notes)
    if other.origin is not None:
        _certify(job, report, other.origin)
    if job.page is not None:
        write_page(Path(job.page), job.model_dir, report)
    return report


@dataclass(frozen=True)
class _Other:
    """What is compared with: its weights, and who answers for it."""

    weights: Callable[[str | Path, Progress], WeightsReport]
    opened: Callable[[], AbstractContextManager[Answers]]
    origin: Checkpoint | None = None


def _checkpoint(job: VerifyJob, windows: Sequence[Array], limit: int | None) -> _Other:
    assert job.checkpoint is not None
    read = detected(open_checkpoint(job.checkpoint, job.source), job.source_format)

    def computed() -> Answers:
        size = sum(record.nbytes for record in read_index(job.model_dir).records.values())
        ids, count = len(windows[0]), len(windows)
        return open_reference(*read, ids, ids * count, size, limit)

    def reference() -> AbstractContextManager[Answers]:
        if job.keep_reference is None:
            return nullcontext(computed())
        return nullcontext(KeptReference(Path(job.keep_reference), *read, computed))

    def weights(directory: str | Path, progress: Progress) -> WeightsReport:
        return compare_weights(directory, *read, progress)

    return _Other(weights, reference, read[0])


def _against(job: VerifyJob) -> _Other:
    assert job.against is not None
    place = model_directory(job.against)

    def weights(directory: str | Path, progress: Progress) -> WeightsReport:
        return compare_artifacts(directory, place, progress)

    return _Other(weights, lambda: CompiledModel(place, None, job.device, job.threads))


def _with_behaviour(
    job: VerifyJob,
    windows: Sequence[Array],
    reference: Answers,
    weights: WeightsReport,
    progress: Progress,
) -> VerifyReport:
    depths: tuple[Depth, ...] = ()
    with CompiledModel(job.model_dir, job.model_lib, job.device, job.threads) as ours:
        behaviour = measure(ours, windows, reference, progress)
        if job.trace:
            ids = windows[0][:TRACED]
            depths = compared(ours.readings(ids, progress), reference.readings(ids))
    failures = [] if weights.passed else [f"weights: {weights.verdict}"]
    failures += [*behaviour.failures(job), *filter(None, [where := parted(depths)])]
    return VerifyReport(not failures, tuple(failures), weights, behaviour, depths, where)


def _certify(job: VerifyJob, report: VerifyReport, ckpt: Checkpoint) -> None:
    """Note in the artifact what was found of its own library and the checkpoint it came from."""
    directory = Path(job.model_dir)
    if job.model_lib is not None or (job.weights_only and report.passed):
        return
    if not is_origin(ckpt, directory):
        return
    name = (
        str(job.text) if job.text else f"{', '.join(TEXTS)} of Python {platform.python_version()}"
    )
    about = {"name": name, "tokens": job.tokens, "window": job.window}
    found = verified(directory, directory / LIB_NAME, report, _text(job), **about)
    write(directory, "verified", found)


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


def window_of(job: VerifyJob) -> tuple[int, tuple[str, ...]]:
    """Tokens of one window, and what it does not look at.

    A model computes otherwise beyond its sliding window and beyond the length that longrope's short
    list holds for, so that a window shall cross them where that costs little.
    """
    chat = ChatConfig.load(job.model_dir)
    room = chat.context_window_size
    if job.window is not None:
        return min(job.window, room), ()
    config = described(chat).config
    names = ("sliding_window", "sliding_window_size", "restart_beyond")
    turns = [n for name in names if isinstance(n := getattr(config, name, None), int)]
    turns = sorted(turn for turn in turns if 0 < turn < room)
    crossing = [turn + CROSSING for turn in turns if turn + CROSSING <= AFFORDED]
    window = min(max([WINDOW, *crossing]), room)
    if not (beyond := [turn for turn in turns if turn >= window]):
        return window, ()
    return window, (
        f"beyond {beyond[0]} tokens this model computes in another way, and no text was as long: "
        f"--window {beyond[-1] + CROSSING} looks there too",
    )


def _windows(job: VerifyJob, window: int) -> Sequence[Array]:
    """int32 ids ``[window]`` each, cut from the text one after the other.

    What the tokenizer knows and the model does not (gemma-3's image token) is left out.
    """
    config = ChatConfig.load(job.model_dir)
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


def _require_torch() -> None:
    for name in ("torch", "transformers"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise MissingDependency(name, "verify", "pip install 'mlc-bridge[torch]'") from None
