"""The report of ``verify`` as a page of one file: a verdict, and plots of what differs."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from mlc_bridge.artifact.workspace import told
from mlc_bridge.engine.tokenizer import Tokenizer
from mlc_bridge.stages.behaviour import Behaviour
from mlc_bridge.stages.plots import page, plot, table
from mlc_bridge.stages.trace import PARTED

if TYPE_CHECKING:
    from mlc_bridge.stages.verify import VerifyReport

ROUNDED = 0.15
"""RMS of the rounding, in parts of the weights', beyond which a layer is marked."""


def write_page(path: Path, model_dir: str | Path, report: VerifyReport) -> None:
    """Raises ArtifactError where it cannot be written."""
    text = page(f"{Path(model_dir).name}: {verdict(report)}", *_parts(Path(model_dir), report))
    with told(path, "cannot write the report"):
        path.write_text(text, encoding="utf-8")


def verdict(report: VerifyReport) -> str:
    """One line."""
    if not report.passed:
        return f"NOT verified, {'; '.join(report.failures)}"
    said = report.behaviour
    numbers = f"; KL {said.kl:.2g} nats, top-1 {said.top1:.2%}" if said else ""
    return f"verified, {report.weights.verdict}{numbers}"


def _parts(model_dir: Path, report: VerifyReport) -> Iterator[str]:
    weights, said = report.weights, report.behaviour
    if said is not None:
        yield table((), _facts(said))
    if weights.differences:
        yield "<h2>Weights that differ</h2><ul>"
        yield "".join(f"<li>{escape(str(difference))}" for difference in weights.differences)
        yield "</ul>"
    if report.depths:
        yield f"<h2>Hidden states by layer</h2><p>{escape(report.parted or 'they agree')}"
        yield "<p>Distance of both sides' readings after so many layers."
        yield plot([(f"{d.layers} layers", d.distance, not d.distance <= PARTED)
                    for d in report.depths])  # fmt: skip
    if weights.rounded:
        yield "<h2>Error of every rounded layer</h2><p>RMS of the error over RMS of the weights."
        yield plot([(e.layer, e.relative, e.relative > ROUNDED) for e in weights.rounded])
    if said is not None and said.by_position:
        yield "<h2>KL divergence by position</h2><p>Nats."
        yield plot([(f"position {i}", kl, False) for i, kl in enumerate(said.by_position)])
        yield "<h2>Where they differ most</h2>"
        yield _worst(Tokenizer(model_dir), said)


def _facts(said: Behaviour) -> Iterator[tuple[str, str]]:
    yield "positions", str(said.tokens)
    yield "compared with", said.reference
    yield "KL divergence", f"{said.kl:.3g} nats, {said.kl_max:.3g} at most"
    yield "token by token", f"{said.decode_kl:.3g} nats, {said.decode_kl_max:.3g} at most"
    yield "top-1 agreement", f"{said.top1:.2%}"
    yield "perplexity", f"{said.perplexity:.3f}, reference {said.reference_perplexity:.3f}"


def _worst(tokenizer: Tokenizer, said: Behaviour) -> str:
    rows = (
        (repr(tokenizer.decode(w.context)), w.position, f"{w.kl:.3g}",
         repr(tokenizer.decode([w.expected])), repr(tokenizer.decode([w.found])))
        for w in said.worst
    )  # fmt: skip
    changed = [i for i, w in enumerate(said.worst) if w.expected != w.found]
    return table(("text before", "position", "KL", "expected", "found"), rows, changed)
