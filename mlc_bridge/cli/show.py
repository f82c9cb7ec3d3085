"""Reports as text: aligned lines on stdout, the same with and without a terminal."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.text import Text

from mlc_bridge.record import Record

SIZES = {"nbytes": "size", "checkpoint_nbytes": "in the checkpoint"}
console = Console(highlight=False, soft_wrap=True)


def rows(title: str, pairs: Iterable[tuple[str, object]]) -> None:
    """One ``name  value`` line each under a title; empty values are left out."""
    console.print(Text(title, style="bold"))
    shown = [(name, text(value)) for name, value in pairs if value not in (None, "", (), [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        console.print(Text(f"  {name:<{width}}  " + _folded(value, width + 4)))


def notes(lines: Sequence[str]) -> None:
    for line in lines:
        console.print(Text("note: ", style="yellow") + Text(_folded(line, 6)))


def table(headers: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Aligned columns, numbers to the right; lines are as long as they need to be."""
    body = [tuple(line) for line in lines]
    columns = list(zip(headers, *([text(cell) for cell in line] for line in body), strict=True))
    widths = [max(map(len, column)) for column in columns]
    indent = sum(widths[:-1]) + 2 * (len(widths) - 1)
    right = [all(isinstance(line[i], int | float) for line in body) for i in range(len(headers))]
    for n, line in enumerate(zip(*columns, strict=True)):
        last = line[-1] if right[-1] else _folded(line[-1], indent)
        cells = zip((*line[:-1], last), widths, right, strict=True)
        shown = "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells)
        console.print(Text(shown.rstrip(), style="bold" if n == 0 else ""))


def _folded(text: str, indent: int) -> str:
    """On a terminal, in lines that end between words, as far as there is room beside ``indent``."""
    room = console.width - indent
    if not console.is_terminal or room < 20 or len(text) <= room:
        return text
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(lines)


def report(title: str, found: Any) -> None:
    """Every field of a report that is a plain value, and the sizes by kind."""
    pairs: list[tuple[str, object]] = []
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        name = field.name.replace("_", " ")
        if field.name in ("notes", "findings"):
            continue
        if field.name in SIZES:
            pairs.append((SIZES[field.name], size(value)))
        elif field.name == "seconds" or field.name.endswith("_s"):
            pairs.append((name, f"{value:.2f} s"))
        elif isinstance(value, Mapping):
            pairs += [(f"{name}: {k}", size(v) if field.name == "sizes" else v)
                      for k, v in value.items()]  # fmt: skip
        elif isinstance(value, str | int | float | Path | bool):
            pairs.append((name, value))
    rows(title, pairs)
    for name in ("notes", "findings"):
        notes(getattr(found, name, ()))


def as_json(found: Any) -> None:
    """A report whole, for other programs."""
    if isinstance(found, Record):
        print(found.to_json())
    else:
        print(json.dumps(to_jsonable_python(found, fallback=str), indent=2))


def size(nbytes: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1000
    raise AssertionError


def text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
