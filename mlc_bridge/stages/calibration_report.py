"""The report of a calibration: ``calibration.json`` for programs, ``calibration.html`` for people.

The page is one file without scripts: what was run, a plot of every layer's largest input against
what its scale represents (logarithmic), the layers that look wrong, and the observers side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from math import log10
from pathlib import Path
from typing import Annotated, Any

from mlc_bridge.artifact.chat_config import write_text
from mlc_bridge.record import Record
from mlc_bridge.schemes.float8 import E4M3
from mlc_bridge.stages.observers import Fit

JSON_NAME = "calibration.json"
HTML_NAME = "calibration.html"
REPORTS = (JSON_NAME, HTML_NAME)
_WIDTH, _HEIGHT, _LEFT = 960, 320, 60
_STYLE = (
    "body{font:14px system-ui;margin:2em;max-width:1000px}table{border-collapse:collapse}"
    "td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}.bad{background:#fdd}"
)


@dataclass(frozen=True)
class LayerReport(Record):
    """One layer's input: the largest |x| seen, the scale chosen, and what every observer offers."""

    layer: Annotated[str, "MLC path of the layer."]
    values: Annotated[int, "Inputs seen."]
    amax: Annotated[float, "Largest |x| seen."]
    chosen: Annotated[Fit, "The scale that was written."]
    observers: Annotated[Mapping[str, Fit], "What every observer offers."]
    wrong: Annotated[str, "Why the layer looks wrong, or empty."] = ""


def write_report(directory: Path, run: Mapping[str, Any], layers: Sequence[LayerReport]) -> None:
    """Write both files into ``directory``; ``run`` says what was calibrated, with what."""
    content = {**run, "layers": [asdict(layer) for layer in layers]}
    write_text(directory / JSON_NAME, json.dumps(content, indent=2))
    write_text(directory / HTML_NAME, _page(run, layers))


def _page(run: Mapping[str, Any], layers: Sequence[LayerReport]) -> str:
    facts = "".join(f"<tr><td>{escape(k)}<td>{escape(str(v))}" for k, v in run.items())
    wrong = "".join(f"<li>{escape(x.layer)}: {escape(x.wrong)}" for x in layers if x.wrong)
    return (
        f"<!doctype html><meta charset=utf-8><title>Calibration</title><style>{_STYLE}</style>"
        f"<h1>Calibration</h1><table>{facts}</table>"
        f"<h2>Layers that look wrong</h2>{f'<ul>{wrong}</ul>' if wrong else '<p>none'}"
        f"<h2>Largest input (dots) and largest represented value (line) of every layer</h2>"
        f"{_plot(layers)}<h2>Layers</h2>{_layer_table(layers)}"
        f"<h2>Observers</h2>{_observer_table(layers)}\n"
    )


def _layer_table(layers: Sequence[LayerReport]) -> str:
    head = "<tr><th>layer<th>amax<th>scale<th>saturated<th>to zero<th>relative error"
    rows = "".join(
        f"<tr{' class=bad' if x.wrong else ''}><td>{escape(x.layer)}<td>{x.amax:.5g}"
        f"<td>{x.chosen.scale:.5g}<td>{x.chosen.saturated:.4%}<td>{x.chosen.vanished:.4%}"
        f"<td>{x.chosen.error**0.5:.3%}"
        for x in layers
    )
    return f"<table>{head}{rows}</table>"


def _observer_table(layers: Sequence[LayerReport]) -> str:
    """Mean over the layers, each observer one row."""
    names = list(layers[0].observers) if layers else []
    head = "<tr><th>observer<th>saturated<th>to zero<th>relative error"
    rows = ""
    for name in names:
        fits = [layer.observers[name] for layer in layers]
        saturated, vanished, error = (
            sum(values) / len(fits)
            for values in (
                [f.saturated for f in fits],
                [f.vanished for f in fits],
                [f.error**0.5 for f in fits],
            )
        )
        rows += f"<tr><td>{name}<td>{saturated:.4%}<td>{vanished:.4%}<td>{error:.3%}"
    return f"<table>{head}{rows}</table>"


def _plot(layers: Sequence[LayerReport]) -> str:
    tops = [max(x.chosen.scale * E4M3.largest, 1e-6) for x in layers]
    seen = [max(x.amax, 1e-6) for x in layers]
    low, high = log10(min(tops + seen)) - 0.1, log10(max(tops + seen)) + 0.1
    step = (_WIDTH - _LEFT) / max(len(layers), 1)

    def place(index: int, value: float) -> tuple[float, float]:
        up = (log10(value) - low) / (high - low)
        return _LEFT + (index + 0.5) * step, _HEIGHT * (1 - up)

    line = " ".join("{:.1f},{:.1f}".format(*place(i, v)) for i, v in enumerate(tops))
    dots = "".join(
        '<circle cx="{:.1f}" cy="{:.1f}" r="3" '.format(*place(i, v))
        + f'fill="{"#c00" if x.wrong else "#06c"}">'
        + f"<title>{escape(x.layer)}: {v:.5g}</title></circle>"
        for i, (x, v) in enumerate(zip(layers, seen, strict=True))
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}">{_axis(low, high)}'
        f'<polyline points="{line}" fill="none" stroke="#999"/>{dots}</svg>'
    )


def _axis(low: float, high: float) -> str:
    """A line at every power of ten and at its double and fivefold."""
    marks = [m * 10.0**e for e in range(int(low) - 1, int(high) + 2) for m in (1, 2, 5)]
    text = ""
    for mark in (m for m in marks if low <= log10(m) <= high):
        y = _HEIGHT * (1 - (log10(mark) - low) / (high - low))
        text += f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>'
        text += f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" font-size="12" text-anchor="end">'
        text += f"{mark:g}</text>"
    return text
