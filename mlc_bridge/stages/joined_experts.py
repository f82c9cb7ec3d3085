"""Experts that a checkpoint joins to one tensor, as tensors of their own: parts of the same bytes.

===============================  ==============  =========================================
tensor                           shape           e.g.
===============================  ==============  =========================================
experts.gate_up_proj             [e, 2 i, h]     Qwen3.5 MoE, what transformers 5 holds
experts.gate_up_proj             [e, h, 2 i]     Qwen3-VL MoE
experts.gate_up_proj             [e, h, 2 i]     gpt-oss: gate and up in turn, column by column
experts.gate_up_proj_blocks      [e, 2 i,        gpt-oss in MXFP4, likewise in turn; never
                                  h/32, 16]      transposed; ``_scales`` beside it
block_sparse_moe.input_linear    [e, 2 i, h]     Granite MoE
experts.down_proj,
block_sparse_moe.output_linear   [e, h, i]       transposed where gate and up are
===============================  ==============  =========================================

with e experts, h the hidden size, i an expert's. ``experts_apart`` gives a view of the checkpoint
in which expert 3 has ``experts.3.gate_proj.weight``, ``up_proj`` and ``down_proj``, so that sources
and models know nothing of it. What belongs to a joined weight (``_scale_inv``, ``_bias``) is cut
along the same rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mlc_bridge.errors import SourceError
from mlc_bridge.sources import Checkpoint
from mlc_bridge.sources.tensor_file import Entry

GATE_UP, DOWN = "gate_up_proj", "down_proj"
JOINED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?(_[a-z_]+)?")
GRANITE = re.compile(r"(.*\.block_sparse_moe)\.(input|output)_linear\.weight()")
# What follows a joined weight's name -> the name of the same in a layer.
SUFFIXES = {"": "weight", "_bias": "bias", **{f"_{s}": f"weight_{s}" for s in (
    "scale", "scale_inv", "packed", "zero_point", "scale_2", "global_scale", "blocks",
    "scales")}}  # fmt: skip
BLOCKS = ("weight_blocks", "weight_scales")
IN_TURN = ("gpt_oss",)


@dataclass(frozen=True)
class Joined:
    """One tensor of all experts of a layer: ``home.<expert>.<layer>.<suffix>``."""

    home: str
    layer: str
    suffix: str
    entry: Entry

    @classmethod
    def of(cls, name: str, entry: Entry) -> Joined | None:
        if found := JOINED.fullmatch(name):
            suffix = SUFFIXES.get(found[3] or "")
            plain = len(entry.shape) == 3 + (suffix == "weight_blocks") or suffix == "bias"
            return cls(found[1], found[2], suffix, entry) if suffix and plain else None
        if (found := GRANITE.fullmatch(name)) and len(entry.shape) == 3:
            layer = GATE_UP if found[2] == "input" else DOWN
            return cls(f"{found[1]}.experts", layer, "weight", entry)
        return None

    def apart(self, *, transposed: bool, in_turn: bool) -> Iterator[tuple[str, Entry]]:
        """The tensors of all experts, by name."""
        turned = transposed and self.suffix not in ("bias", *BLOCKS)
        whole = _turned(self.entry) if turned else self.entry
        count, rows = whole.shape[:2]
        parts = ("gate_proj", "up_proj") if self.layer == GATE_UP else (DOWN,)
        if rows % len(parts):
            raise SourceError(
                "gate and up of joined experts are no halves of its rows",
                where=f"{self.home}.{self.layer}", found=self.entry.shape,
            )  # fmt: skip
        n = rows // len(parts)
        for expert in range(count):
            for number, part in enumerate(parts):
                first, step = (number, len(parts)) if in_turn else (number * n, 1)
                name = f"{self.home}.{expert}.{part}.{self.suffix}"
                yield name, _rows(whole, expert, first, step, n)


def experts_apart(ckpt: Checkpoint) -> Checkpoint:
    """The view; ``ckpt`` itself where no experts are joined."""
    joined = {n: j for n, entry in ckpt.entries.items() if (j := Joined.of(n, entry))}
    if not joined:
        return ckpt
    matrices = [j for j in joined.values() if j.entry.shape[2:] and j.suffix not in BLOCKS]
    weights = {(j.home, j.layer): j for j in matrices}
    homes = {j.home for j in joined.values()}
    turned = {h: any(h == k for k, _ in weights) and _transposed(ckpt, weights, h) for h in homes}
    in_turn = ckpt.config.get("model_type") in IN_TURN
    entries: dict[str, Entry] = {}
    for name, entry in ckpt.entries.items():
        if (one := joined.get(name)) is None:
            entries[name] = entry
        else:
            entries |= one.apart(transposed=turned[one.home], in_turn=in_turn)
    return replace(ckpt, entries=entries)


def _transposed(ckpt: Checkpoint, weights: dict[tuple[str, str], Joined], home: str) -> bool:
    """Whether the experts of ``home`` lie ``[in, out]``. SourceError where it cannot be told."""
    shapes = [
        weights[home, layer].entry.shape for layer in (GATE_UP, DOWN) if (home, layer) in weights
    ]
    if len(shapes) == 2:
        (_, a, b), (_, c, d) = shapes
        hidden = ckpt.config.get("hidden_size")
        if (b, c, a) == (hidden, hidden, 2 * d):
            return False
        if (a, d, b) == (hidden, hidden, 2 * c):
            return True
    raise SourceError(
        "joined experts of these shapes do not fit config.json",
        where=home, found=" and ".join(str(shape) for shape in shapes),
        expected="gate_up_proj [e, 2 i, h] and down_proj [e, h, i], or both transposed",
    )  # fmt: skip


def _strides(entry: Entry) -> tuple[int, ...]:
    if entry.strides is not None:
        return entry.strides
    return tuple(
        entry.dtype.itemsize * math.prod(entry.shape[i + 1 :]) for i in range(len(entry.shape))
    )


def _turned(entry: Entry) -> Entry:
    """The last two axes of ``[e, k, n]`` exchanged."""
    (e, k, n), (each, row, column) = entry.shape, _strides(entry)
    return replace(entry, shape=(e, n, k), strides=(each, column, row))


def _rows(whole: Entry, expert: int, first: int, step: int, count: int) -> Entry:
    """``whole[expert, first::step][:count]``, over the bytes that hold it."""
    each, row, *columns = _strides(whole)
    shape, strides = (count, *whole.shape[2:]), (row * step, *columns)
    span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + whole.dtype.itemsize
    entry = replace(
        whole, shape=shape, begin=whole.begin + expert * each + first * row,
        nbytes=span if min(shape) else 0, strides=None,
    )  # fmt: skip
    return entry if strides == _strides(entry) else replace(entry, strides=strides)
