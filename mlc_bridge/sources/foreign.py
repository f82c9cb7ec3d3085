"""Formats of other tools that are not read, by name: so that a refusal says what the file is.

A row says by what a format is known: the config's ``quant_method``, words anywhere in its settings
(all of them), and endings of tensor names (one is enough; a row without methods is known by these
alone). Rows are asked in order, so the special ones come first. Adding a format is adding a row.

Origin: transformers 5.24 quantizers/, vLLM 0.33, and the tools' own documentation.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

# What can always be done, since each of these was made from it.
INSTEAD = (
    "Build the float model it was made from (its directory or hub id), for example with "
    "--quantization q4f16_1"
)


@dataclass(frozen=True)
class Foreign:
    """``about``: what its weights are, a few words for people who do not know the tool."""

    name: str
    about: str
    methods: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()

    def matches(self, settings: Mapping[str, Any], names: Collection[str]) -> bool:
        text = json.dumps(settings, default=str).lower()
        if self.methods and settings.get("quant_method") not in self.methods:
            return False
        if not all(word in text for word in self.words):
            return False
        return not self.tensors or any(name.endswith(self.tensors) for name in names)


CT, MODELOPT, AUTOROUND = ("compressed-tensors",), ("modelopt", "modelopt_fp4"), (
    "auto-round", "intel/auto-round", "inc",
)  # fmt: skip
FP4, MX = "4-bit floats with float8 scales", "4-bit floats, a power of two for 32 of them"

FOREIGN = (
    Foreign("compressed-tensors MXFP8", "float8, a power of two for 32 of them", CT,
            ("mxfp8-quantized",)),
    Foreign("compressed-tensors 2:4 sparse", "half of the weights left out", CT, ("marlin-24",)),
    Foreign("ModelOpt MXFP8", "float8, a power of two for 32 of them", MODELOPT, ("mxfp8",)),
    Foreign("ModelOpt INT4 AWQ", "4 bits, and a scale for each input channel", MODELOPT,
            ("awq",)),
    Foreign("bitsandbytes FP4", "4-bit floats", ("bitsandbytes",),
            tensors=("bitsandbytes__fp4",)),
    Foreign("SINQ", "codes scaled along rows and columns", ("sinq",)),
    Foreign("SINQ", "codes scaled along rows and columns", tensors=(".scale2",)),
    Foreign("HQQ", "zero points that are no whole numbers", ("hqq",)),
    Foreign("HQQ", "zero points that are no whole numbers", tensors=(".W_q",)),
    Foreign("torchao", "tensor subclasses of PyTorch", ("torchao",)),
    Foreign("torchao", "tensor subclasses of PyTorch", tensors=(".weight:qdata", "_qdata")),
    Foreign("quanto", "tensor subclasses of optimum-quanto", ("quanto",)),
    Foreign("quanto", "tensor subclasses of optimum-quanto", tensors=(".weight._data",)),
    Foreign("EXL3 of ExLlamaV3", "trellis codes", ("exl3",)),
    Foreign("EXL3 of ExLlamaV3", "trellis codes", tensors=(".trellis",)),
    Foreign("EXL2 of ExLlamaV2", "bits that change within a layer", ("exl2",)),
    Foreign("EXL2 of ExLlamaV2", "bits that change within a layer", tensors=(".q_invperm",)),
    Foreign("AQLM", "sums of codebook vectors", ("aqlm",)),
    Foreign("AQLM", "sums of codebook vectors", tensors=(".codebooks",)),
    Foreign("VPTQ", "vectors of a codebook", ("vptq",)),
    Foreign("VPTQ", "vectors of a codebook", tensors=(".centroids.weight", ".centroids")),
    Foreign("EETQ", "8 bits in a GPU kernel's order", ("eetq",)),
    Foreign("BitNet", "three values a weight", ("bitnet",)),
    Foreign("ParoQuant", "4 bits behind rotations at run time", ("paroquant",)),
    Foreign("ParoQuant", "4 bits behind rotations at run time", tensors=(".channel_scales",)),
    Foreign("Quark MXFP6", "6-bit floats", ("quark",), ("fp6",)),
    Foreign("Quark INT4", "AutoAWQ's order under names of its own", ("quark",), ("int4",)),
    Foreign("Quark", "a dtype of its own", ("quark",)),
    Foreign("MXFP8", "float8, a power of two for 32 of them", ("mxfp8",)),
    Foreign("Google's mobile quantization", "2, 4 and 8 bits with rounded activations",
            ("gemma",)),
    Foreign("SpQR", "3 bits and sparse outliers", ("spqr",)),
    Foreign("HIGGS", "vectors of a lattice after a Hadamard transform", ("higgs",)),
    Foreign("FP-Quant", "4-bit floats after a Hadamard transform", ("fp_quant",)),
    Foreign("Four Over Six", FP4, ("fouroversix", "four_over_six")),
    Foreign("NVFP4", FP4, ("nvfp4",)),
    Foreign("QQQ", "4 bits in a GPU kernel's order", ("qqq",)),
    Foreign("SqueezeLLM", "a table for every row", ("squeezellm",)),
    Foreign("the Marlin format", "4 bits in a GPU kernel's order", ("marlin",)),
    Foreign("GPTQ in Marlin's order", "4 bits in a GPU kernel's order", ("gptq",),
            ('checkpoint_format": "marlin"',)),
    Foreign("GPTQ in BitBLAS's order", "codes in a GPU kernel's order", ("gptq",), ("bitblas",)),
    Foreign("GPTQ in planes", "5, 6 or 7 bits, a plane each", ("gptq",), ("gptq_p\"",)),
    Foreign("AutoRound MXFP", MX, AUTOROUND, ("mx_fp",)),
    Foreign("AutoRound NVFP4", FP4, AUTOROUND, ("nv_fp",)),
    Foreign("AutoRound", "a packing_format that is not read", AUTOROUND),
    Foreign("MLX", "zero points that are no whole numbers", tensors=(".biases",)),
    Foreign("MLX", "arrays of Apple's framework", ("metal", "mlx")),
    Foreign("Nunchaku", "4 bits and a low-rank part", ("svdquant", "nunchaku")),
)  # fmt: skip


# Files of weights that are no tensors of a Hugging Face model, by the ending of their names.
FILES = {
    ".gguf": "GGUF", ".ggml": "GGML", ".onnx": "ONNX", ".h5": "TensorFlow", ".msgpack": "Flax",
    ".npz": "MLX arrays", ".tflite": "TensorFlow Lite", ".nemo": "NeMo", ".engine": "TensorRT",
}  # fmt: skip


def foreign(settings: Mapping[str, Any], names: Collection[str]) -> Foreign | None:
    """The first row that these settings and tensor names match."""
    return next((row for row in FOREIGN if row.matches(settings, names)), None)
