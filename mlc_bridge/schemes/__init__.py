"""Quantization schemes under MLC's own names: one file per family, one row per scheme."""

from __future__ import annotations

from mlc_bridge.registry import Table, table
from mlc_bridge.schemes import (
    autoawq,
    dense,
    float4,
    fp8,
    fp8_block,
    fp8_dynamic,
    fp8_row,
    group_quant,
    int8,
    int8_inputs,
)
from mlc_bridge.schemes.scheme import Role, Scheme, Spec, for_role

__all__ = ["SCHEMES", "Role", "Scheme", "Spec", "for_role", "register_quantization"]

# Words of MLC LLM's documents and of its older versions.
MLC_WORDS = {
    "q4f16_awq": "q4f16_autoawq",
    "e4m3_e4m3_f16_calibrate": "e4m3_e4m3_f16_max_calibrate",
}

SCHEMES: Table[Scheme] = table(
    "schemes",
    *(dense.Q0F16, dense.Q0BF16, dense.Q0F32),
    *autoawq.ROWS,
    *int8.ROWS,
    *group_quant.ROWS,
    *fp8.ROWS,
    *fp8_block.ROWS,
    *fp8_row.ROWS,
    *float4.ROWS,
    *int8_inputs.ROWS,
    *fp8_dynamic.ROWS,
    aliases=MLC_WORDS,
)


def register_quantization(scheme: Scheme) -> Scheme:
    """Add a scheme to ``SCHEMES`` in a running program; every stage and flag then knows its name.

    A row of a family (``GroupQuant("q4f16_g64", 4, 64, "float16")``) or any object with the methods
    of ``Scheme``. A package does the same with the entry-point group ``mlc_bridge.schemes``. Raises
    ConfigError when the name is taken.
    """
    return SCHEMES.register(scheme)
