"""Variants that a measurement preferred: `choices.json` beside this file, if there is one.

    {"card": "NVIDIA H200", "date": "2026-12-01",
     "awq_few": {"12288x4096 g128 up to 8": {"words": 1, "warps": 16, "ahead": 8}, ...},
     "decode": {"32/8 heads of 128": {"blocks": 528, "warps": 4}, ...}}

`python -m benchmarks.gpu adopt` writes it. What it does not name keeps the rules' own choice; one
card's measurement serves all, as nothing better is known of the others.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from .attention_function import Heads

FILE = Path(__file__).with_name("choices.json")
Found = dict[str, dict[str, int]]


@functools.cache
def measured(kernel: str) -> Found:
    """All choices for one kernel, by shape."""
    if not FILE.exists():
        return {}
    found: Found = json.loads(FILE.read_text()).get(kernel, {})
    return found


def layer(n: int, k: int, group: int, most_rows: int) -> str:
    """How a 4-bit layer is named there."""
    return f"{n}x{k} g{group} up to {most_rows}"


def attention(heads: Heads) -> str:
    """How a layer's attention is named there."""
    return f"{heads.num_q}/{heads.num_kv} heads of {heads.d}"
