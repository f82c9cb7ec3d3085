"""The report of a calibration: ``calibration.json`` for programs, ``calibration.html`` for people.

The page is one file without scripts: what was run, a plot of every layer's largest input against
what its scale represents (logarithmic), the layers that look wrong, and the observers side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

from mlc_bridge.artifact.chat_config import write_text
from mlc_bridge.record import Record
from mlc_bridge.schemes.float8 import E4M3
from mlc_bridge.stages.observers import Fit
from mlc_bridge.stages.plots import page, plot, table

JSON_NAME = "calibration.json"
HTML_NAME = "calibration.html"
REPORTS = (JSON_NAME, HTML_NAME)


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
    wrong = "".join(f"<li>{escape(x.layer)}: {escape(x.wrong)}" for x in layers if x.wrong)
    tops = [x.chosen.scale * E4M3.largest for x in layers]
    return page(
        "Calibration",
        table((), run.items()),
        f"<h2>Layers that look wrong</h2>{f'<ul>{wrong}</ul>' if wrong else '<p>none'}",
        "<h2>Largest input (dots) and largest represented value (line) of every layer</h2>",
        plot([(x.layer, x.amax, bool(x.wrong)) for x in layers], tops),
        f"<h2>Layers</h2>{_layer_table(layers)}<h2>Observers</h2>{_observer_table(layers)}",
    )


def _layer_table(layers: Sequence[LayerReport]) -> str:
    rows = [
        (x.layer, f"{x.amax:.5g}", f"{x.chosen.scale:.5g}", f"{x.chosen.saturated:.4%}",
         f"{x.chosen.vanished:.4%}", f"{x.chosen.error**0.5:.3%}")
        for x in layers
    ]  # fmt: skip
    headers = ("layer", "amax", "scale", "saturated", "to zero", "relative error")
    return table(headers, rows, [i for i, x in enumerate(layers) if x.wrong])


def _observer_table(layers: Sequence[LayerReport]) -> str:
    """Mean over the layers, each observer one row."""
    names = list(layers[0].observers) if layers else []
    rows = []
    for name in names:
        fits = [layer.observers[name] for layer in layers]
        means = (
            sum(values) / len(fits)
            for values in (
                [f.saturated for f in fits],
                [f.vanished for f in fits],
                [f.error**0.5 for f in fits],
            )
        )
        saturated, vanished, error = means
        rows.append((name, f"{saturated:.4%}", f"{vanished:.4%}", f"{error:.3%}"))
    return table(("observer", "saturated", "to zero", "relative error"), rows)
