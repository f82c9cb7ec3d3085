"""Quantization schemes under MLC's own names: one file per family, one row per scheme."""

from __future__ import annotations

from mlc_bridge.registry import Table, table
from mlc_bridge.schemes import autoawq, dense, fp8, fp8_block, group_quant, int8
from mlc_bridge.schemes.scheme import Role, Scheme, Spec, for_role

__all__ = ["SCHEMES", "Role", "Scheme", "Spec", "for_role"]

SCHEMES: Table[Scheme] = table(
    "schemes",
    *(dense.Q0F16, dense.Q0BF16, dense.Q0F32),
    *autoawq.ROWS,
    *group_quant.ROWS,
    *int8.ROWS,
    *fp8.ROWS,
    *fp8_block.ROWS,
)
