"""Attention sinks, without the runtime's knowledge: a spare head that tells the log-sum-exp.

A sink is a logit of each head that takes part in the softmax and has no value:

    out = sum_j e^s_j v_j / (e^sink + sum_j e^s_j) = out_without * sigmoid(lse - sink)

The runtime's cache knows no sinks, and keeps lse between its kernels. But outputs come back to the
graph; so every KV head gets one query head more, whose output is not attention: elements 2 g and
2 g + 1 hold lse (base 2) of query head g of the group, as a number of the output's dtype and what
that leaves. Kernels that write lse tell it there, and merging two results tells the merged one.
The graph multiplies by the sigmoid (``models/decoder/sinks.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm.script import tirx as T

if TYPE_CHECKING:
    from tir_schedules.cpu.attention_tile import Heads


def told_heads(heads: Heads) -> int:
    """Query heads of a group that attend."""
    return heads.group - heads.spare


def tell_lse(heads: Heads) -> Any:
    """Macro ``(output, lse, row, head)``: what the spare head says of query head ``head``."""
    group, dtype, real = heads.group, heads.dtype, told_heads(heads)

    @T.macro
    def tell(output: T.Buffer, lse: T.Buffer, row: T.int32, head: T.int32) -> None:
        if head % group < real:
            spare: T.let[T.int32] = head // group * group + real
            output[row, spare, head % group * 2] = T.Cast(dtype, lse[row, head])
            output[row, spare, head % group * 2 + 1] = T.Cast(
                dtype, lse[row, head] - T.Cast("float32", T.Cast(dtype, lse[row, head]))
            )

    @T.macro
    def silent(output: T.Buffer, lse: T.Buffer, row: T.int32, head: T.int32) -> None:
        pass

    return tell if heads.spare else silent
