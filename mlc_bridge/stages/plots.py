"""Plots and tables for pages of one file: inline SVG and HTML, no scripts, light and dark.

Values stand on a logarithmic axis, one column each; ``<title>`` says under the pointer what a dot
is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import log10

WIDTH, HEIGHT, LEFT = 960, 320, 60
STYLE = (
    ":root{color-scheme:light dark;--line:light-dark(#ddd,#444);--dot:light-dark(#06c,#6af);"
    "--bad:light-dark(#c00,#f66);--row:light-dark(#fdd,#522)}"
    "body{font:14px system-ui;margin:2em;max-width:1000px}table{border-collapse:collapse}"
    "td,th{padding:2px 10px;text-align:right;border-bottom:1px solid var(--line)}"
    "td:first-child,th:first-child{text-align:left}.bad{background:var(--row)}"
    "svg{max-width:100%}svg line{stroke:var(--line)}svg text{fill:currentColor}"
    "svg polyline{fill:none;stroke:#999}svg circle{fill:var(--dot)}svg circle.bad{fill:var(--bad)}"
)
Dot = tuple[str, float, bool]
"""Name, value, whether it is bad."""


def page(title: str, *parts: str) -> str:
    head = f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title>"
    return f"{head}<style>{STYLE}</style><h1>{escape(title)}</h1>{''.join(parts)}\n"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], bad: Sequence[int] = ()) -> str:
    """``bad``: numbers of rows to be seen at once."""
    head = f"<tr>{''.join(f'<th>{escape(h)}' for h in headers)}" if headers else ""
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{escape(str(cell))}" for cell in row)
        body += f"<tr{' class=bad' if number in bad else ''}>{cells}"
    return f"<table>{head}{body}</table>"


def plot(dots: Sequence[Dot], line: Sequence[float] = ()) -> str:
    """``dots`` one beside the other, and a ``line`` over the same columns."""
    seen = [max(value, 1e-12) for _, value, _ in dots]
    tops = [max(value, 1e-12) for value in line]
    low, high = log10(min(tops + seen)) - 0.1, log10(max(tops + seen)) + 0.1
    step = (WIDTH - LEFT) / max(len(dots), 1)

    def place(index: int, value: float) -> tuple[float, float]:
        up = (log10(value) - low) / (high - low)
        return LEFT + (index + 0.5) * step, HEIGHT * (1 - up)

    path = " ".join("{:.1f},{:.1f}".format(*place(i, v)) for i, v in enumerate(tops))
    size = 3 if len(dots) < 400 else 1.5
    circles = "".join(
        '<circle cx="{:.1f}" cy="{:.1f}" '.format(*place(i, seen[i]))
        + f'r="{size}"{" class=bad" if bad else ""}>'
        + f"<title>{escape(name)}: {value:.5g}</title></circle>"
        for i, (name, value, bad) in enumerate(dots)
    )
    drawn = f'<polyline points="{path}"/>' if path else ""
    view = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
    return f"<svg {view}>{_axis(low, high)}{drawn}{circles}</svg>"


def _axis(low: float, high: float) -> str:
    """A line at every power of ten; at its double and fivefold too where there are few."""
    steps = (1, 2, 5) if high - low < 3 else (1,)
    marks = [m * 10.0**e for e in range(int(low) - 1, int(high) + 2) for m in steps]
    text = ""
    for mark in (m for m in marks if low <= log10(m) <= high):
        y = HEIGHT * (1 - (log10(mark) - low) / (high - low))
        text += f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        text += f'<text x="{LEFT - 6}" y="{y + 4:.1f}" font-size="12" text-anchor="end">'
        text += f"{mark:g}</text>"
    return text
