"""Why values may differ from those expected, said only where the numbers themselves show it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlc_bridge.packing import Array

SORTED = 1 << 26
"""Elements that are sorted at most to see whether they only changed places."""
ALIKE = 0.9
"""Cosine of one matrix and its rounding to 3 bits or more; of two layers it is about 0."""


def likely_cause(found: Array, wanted: Array, others: Iterator[tuple[str, Array]]) -> str:
    """A few words, or "". ``others``: (layer, values) that may lie here instead of ``wanted``."""
    found, wanted = found.astype(np.float32), wanted.astype(np.float32)
    bad = found != wanted
    here, there = found[bad], wanted[bad]
    if not np.isfinite(here).all():
        return "not finite"
    if not here.any():
        return "zeros"
    if said := _factor(here, there):
        return said
    if found.ndim < 2 or here.size == 1:
        return ""
    if said := _moved(found, wanted):
        return said
    if 2 * here.size > found.size:
        for name, values in others:
            if values.shape == found.shape and _cosine(values, found) > ALIKE:
                return f"these are the values of {name}"
    return ""


def _factor(here: Array, there: Array) -> str:
    """One factor for all; a rounded one is the same within a unit of float16."""
    if not there.all():
        return ""
    ratio = here / there
    middle = float(np.median(ratio))
    if np.abs(ratio - middle).max() > 2e-3 * abs(middle):
        return ""
    if abs(middle + 1) < 2e-3:
        return "the sign is turned"
    return f"times {middle:.4g}" if len(here) > 1 else ""


def _moved(found: Array, wanted: Array) -> str:
    if found.size > SORTED:
        return ""
    for axis, what in enumerate(("rows", "columns")):
        if np.array_equal(np.sort(found, axis), np.sort(wanted, axis)):
            return f"{what} in another order"
    return ""


def _cosine(a: Array, b: Array) -> float:
    a, b = np.asarray(a, np.float32).ravel(), b.ravel()
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else 0.0
