"""Fields that several Jobs share: the type and what it means to the user, said once.

A field's annotation carries its help text; the command line shows it and adds the default. What
one Job alone has is annotated there. Sizes are in tokens, None is the checkpoint's or lib's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

ONE_DEVICE = "MLC splits a model over several GPUs; here it runs on one device"

CheckpointPath = Annotated[
    str | Path,
    "Checkpoint: directory, its config.json, weights file, or hub id org/name[@revision].",
]
ArtifactPath = Annotated[
    str | Path, "MLC model directory, its mlc-chat-config.json, or HF://org/name."
]
Output = Annotated[str | Path, "Directory to write."]
Quantization = Annotated[
    str,
    "Scheme under MLC's name; auto keeps the checkpoint as it is. Layers by name may have others: "
    "q4f16_1,down_proj=q8f16_1,lm_head=q0f16.",
]
ConvTemplate = Annotated[
    str, "MLC's template name; auto derives it from the checkpoint and proves it."
]
SourceWeights = Annotated[
    str | Path | None, "Weights that lie elsewhere: directory, file or index."
]
SourceFormat = Annotated[str, "Source format; auto looks at config and tensors."]
Requantize = Annotated[
    bool | str, "Allow rounding where the scheme cannot hold a weight exactly: all, or names."
]
ContextWindow = Annotated[int | None, "Tokens of prompt and answer together."]
SlidingWindow = Annotated[int | None, "Tokens of the sliding attention window."]
PrefillChunk = Annotated[int | None, "Tokens of the prompt that are computed at once."]
AttentionSink = Annotated[int | None, "Tokens kept at the start of a sliding window."]
MaxBatch = Annotated[int | None, "Sequences computed together."]
TargetDevice = Annotated[str, "Device to compile for: auto, cpu, cuda."]
Target = Annotated[str | None, "Target of another machine, as JSON or a tag; overrides --device."]
Opt = Annotated[
    str | None, 'MLC\'s switches, as in "cudagraph=0"; on CUDA that leaves CUDA graphs out.'
]
Host = Annotated[str, "LLVM triple of the CPU side; only this kind of machine can be linked for."]
KeepLibs = Annotated[bool, "Take an equal library from the user's cache, and keep a new one there."]
ModelLib = Annotated[str | Path | None, "Compiled library; default is lib.so of the directory."]
RunDevice = Annotated[str, "Device to run on: auto is what the library was compiled for."]
Threads = Annotated[int | None, "Threads that run the kernels; default is one for each core."]
Samples = Annotated[int, "Samples to take from the calibration data."]
LoadLib = Annotated[
    bool, "Load the library, which runs its code, in place of reading what it says."
]
