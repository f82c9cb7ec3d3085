"""How far a compiled model's answers are from another's, over windows of text.

At every position, over the whole vocabulary, p the reference and q the compiled model:

    KL = sum_v p(v) (log p(v) - log q(v))  nats;  top-1: argmax p == argmax q
    perplexity = exp(-mean log q(next token)), and that of p
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Protocol

import numpy as np

from mlc_bridge.packing import Array
from mlc_bridge.record import Record
from mlc_bridge.stages.compiled_model import CompiledModel
from mlc_bridge.stages.progress import Progress
from mlc_bridge.stages.reference import WHOLE

if TYPE_CHECKING:
    from mlc_bridge.stages.verify import VerifyJob

WORST = 12  # positions that are told
CONTEXT = 12  # tokens before and at such a position


@dataclass(frozen=True)
class Worst(Record):
    """A position, the tokens up to it, and the likeliest next token of both sides."""

    position: Annotated[int, "Position in the text read."]
    kl: Annotated[float, "KL divergence there, nats."]
    context: Annotated[tuple[int, ...], "The tokens up to it."]
    expected: Annotated[int, "Likeliest next token of the reference."]
    found: Annotated[int, "Likeliest next token of the compiled model."]


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
    reference: Annotated[str, "What was compared with, and how it was computed."] = WHOLE
    by_position: Annotated[tuple[float, ...], "KL divergence of every position, nats."] = ()
    worst: Annotated[tuple[Worst, ...], "Where the two differ most."] = ()

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


class Answers(Protocol):
    """What is compared with: ``reference.Reference``, or another ``CompiledModel``."""

    how: str

    def logits(self, windows: Sequence[Array], progress: Progress) -> Iterator[Array]: ...
    def readings(self, ids: Array) -> Sequence[Array]: ...


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
    by_position: list[float] = field(default_factory=list)
    likeliest: list[tuple[int, int]] = field(default_factory=list)

    def add(self, ours: Array, theirs: Array, ids: Array) -> None:
        """Logits ``[n, vocab]`` of both for one window of ids ``[n]``."""
        p, q = _log_softmax(theirs), _log_softmax(ours)
        kl = (np.exp(p) * (p - q)).sum(axis=1)
        self.count += len(ids)
        self.kl += float(kl.sum())
        self.by_position += kl.tolist()
        self.likeliest += zip(p.argmax(axis=1).tolist(), q.argmax(axis=1).tolist(), strict=True)
        self.kl_max = max(self.kl_max, float(kl.max()))
        self.equal += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
        rows = np.arange(len(ids) - 1)
        self.loss -= float(q[rows, ids[1:]].sum())
        self.reference_loss -= float(p[rows, ids[1:]].sum())
        self.predicted += len(ids) - 1
        self.difference = max(self.difference, float(np.abs(ours - theirs).max()))


def measure(
    ours: CompiledModel, windows: Sequence[Array], reference: Answers, progress: Progress
) -> Behaviour:
    """Read ``windows`` of ids ``[n]`` with both."""
    sums, decode = _Sums(), _Sums()
    both = zip(windows, ours.logits(windows), reference.logits(windows, progress), strict=True)
    for done, (ids, mine, theirs) in enumerate(both):
        progress("verify", done, len(windows))
        sums.add(mine, theirs, ids)
        if done == 0 and len(rows := ours.decoded(ids)):
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
        by_position=tuple(sums.by_position),
        worst=tuple(_worst(sums, np.concatenate(windows))),
    )


def _worst(sums: _Sums, ids: Array) -> Iterator[Worst]:
    order = np.argsort(sums.by_position)[::-1][:WORST]
    for at in order.tolist():
        context = tuple(int(i) for i in ids[max(0, at - CONTEXT + 1) : at + 1])
        yield Worst(at, sums.by_position[at], context, *sums.likeliest[at])


def _log_softmax(logits: Array) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
