"""Checkpoint formats that a quantized model is written in; one file per format."""

from __future__ import annotations

from mlc_bridge.quantizers.outputs.autoawq import AutoAwq
from mlc_bridge.quantizers.outputs.compressed_tensors import CompressedTensors
from mlc_bridge.quantizers.outputs.floats import Floats
from mlc_bridge.quantizers.outputs.msmodelslim import MsModelSlim
from mlc_bridge.quantizers.outputs.output import Output, Rounded, Static
from mlc_bridge.registry import Table, table

OUTPUTS: Table[Output] = table("outputs", CompressedTensors(), AutoAwq(), MsModelSlim(), Floats())
"""Outputs by name."""

__all__ = ["OUTPUTS", "Output", "Rounded", "Static"]
