"""The report of a quantization: ``quantize.json`` for programs, ``quantize.html`` for people.

The page is one file without scripts: what was run, what was measured, every layer's error.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlc_bridge.quantizers.layer_report import LayerReport
    from mlc_bridge.stages.quantize import QuantizeReport

JSON_NAME = "quantize.json"
HTML_NAME = "quantize.html"
REPORTS = (JSON_NAME, HTML_NAME)
_STYLE = (
    "body{font:14px system-ui;margin:2em;max-width:1000px}table{border-collapse:collapse}"
    "td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
)
_WIDTH, _HEIGHT = 960, 240


def write_report(directory: Path, found: QuantizeReport) -> None:
    """Write both files into ``directory``."""
    (directory / JSON_NAME).write_text(found.to_json(), "utf-8")
    (directory / HTML_NAME).write_text(_page(found), "utf-8")


def _page(found: QuantizeReport) -> str:
    facts = {
        "recipe": found.recipe["name"],
        "format": found.format,
        "calibration": f"{found.samples} samples, {found.tokens} tokens",
        "layers left in float": ", ".join(found.float_layers) or "none",
        "bytes": f"{found.nbytes} of {found.checkpoint_nbytes}",
        **{name.replace("_", " "): f"{value:.6g}" for name, value in found.measured.items()},
    }
    rows = "".join(f"<tr><td>{escape(k)}<td>{escape(str(v))}" for k, v in facts.items())
    notes = "".join(f"<li>{escape(note)}" for note in found.notes)
    return (
        f"<!doctype html><meta charset=utf-8><title>Quantization</title><style>{_STYLE}</style>"
        f"<h1>Quantization</h1><table>{rows}</table><ul>{notes}</ul>"
        f"<h2>Error of every layer's output (dots) and weights (line), relative</h2>"
        f"{_plot(found.layers)}<h2>Layers</h2>{_table(found.layers)}\n"
    )


def _plot(layers: tuple[LayerReport, ...]) -> str:
    top = max((max(x.weight, x.output or 0) for x in layers), default=0) or 1
    step = _WIDTH / max(len(layers), 1)

    def at(i: int, value: float) -> str:
        return f"{(i + 0.5) * step:.1f},{_HEIGHT * (1 - value / top):.1f}"

    line = " ".join(at(i, x.weight) for i, x in enumerate(layers))
    dots = "".join(
        '<circle cx="{}" cy="{}" r="3" fill="#06c">'.format(*at(i, x.output).split(","))
        + f"<title>{escape(x.layer)}: {x.output:.4%}</title></circle>"
        for i, x in enumerate(layers)
        if x.output is not None
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}">'
        f'<text x="2" y="12" font-size="12">{top:.2%}</text>'
        f'<polyline points="{line}" fill="none" stroke="#999"/>{dots}</svg>'
    )


def _table(layers: tuple[LayerReport, ...]) -> str:
    head = "<tr><th>layer<th>shape<th>weights<th>output<th>scales<th>input scale"
    return f"<table>{head}" + "".join(
        f"<tr><td>{escape(x.layer)}<td>{x.shape[0]} x {x.shape[1]}<td>{x.weight:.3%}"
        f"<td>{'' if x.output is None else f'{x.output:.3%}'}"
        f"<td>{x.smallest_scale:.3g} to {x.largest_scale:.3g}"
        f"<td>{'' if x.input_scale is None else f'{x.input_scale:.4g}'}"
        for x in layers
    ) + "</table>"  # fmt: skip
