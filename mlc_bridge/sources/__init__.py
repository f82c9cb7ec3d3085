"""Source formats: one file each, one word each in ``SOURCES``; ``detect`` finds the right one."""

from __future__ import annotations

from mlc_bridge.errors import UnknownFormat
from mlc_bridge.registry import Table, table
from mlc_bridge.sources.autoawq import AutoAWQ
from mlc_bridge.sources.autoawq_gemv import AutoAWQGemv
from mlc_bridge.sources.autoawq_gemv_fast import AutoAWQGemvFast
from mlc_bridge.sources.autoawq_marlin import AutoAWQMarlin
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.compressed_tensors import CompressedTensors
from mlc_bridge.sources.dense import Dense
from mlc_bridge.sources.gptq import GPTQ
from mlc_bridge.sources.hf_fp8 import HFFP8
from mlc_bridge.sources.llm_awq import LlmAwq
from mlc_bridge.sources.msmodelslim import MsModelSlim
from mlc_bridge.sources.source import Evidence, Source

__all__ = ["SOURCES", "Checkpoint", "Evidence", "Source", "detect"]

SOURCES: Table[Source] = table(
    "sources",
    Dense(),
    AutoAWQ(),
    AutoAWQGemv(),
    AutoAWQGemvFast(),
    AutoAWQMarlin(),
    LlmAwq(),
    GPTQ(),
    CompressedTensors(),
    HFFP8(),
    MsModelSlim(),
)

# MLC LLM's words for --source-format, each a family here.
ALIASES = {
    "awq": ("autoawq", "autoawq-gemv", "autoawq-gemv-fast", "autoawq-marlin", "llm-awq"),
    "huggingface-safetensor": ("dense",),
    "huggingface-torch": ("dense",),
}


def detect(ckpt: Checkpoint, wanted: str | None = None) -> Source:
    """The one source that fits the checkpoint; ``wanted`` (a name or MLC's word) narrows it down.

    Raises UnknownFormat, with what speaks for and against every candidate, when none or two fit,
    and when the wanted one is contradicted.
    """
    names = tuple(SOURCES) if wanted in (None, "auto") else ALIASES.get(str(wanted), (str(wanted),))
    evidence = {name: SOURCES[name].evidence(ckpt) for name in names}
    fitting = [name for name in names if evidence[name].matches]
    if len(fitting) == 1:
        return SOURCES[fitting[0]]
    raise UnknownFormat(
        f"{'more than one' if fitting else 'no'} source format fits this checkpoint"
        if len(names) > 1
        else f"this is not a checkpoint of the wanted format {wanted}",
        where=ckpt.path,
        found="; ".join(_line(name, e) for name, e in evidence.items()),
        todo="Name the format with --source-format" if fitting else None,
    )


def _line(name: str, evidence: Evidence) -> str:
    said = [f"for: {', '.join(evidence.supports)}"] if evidence.supports else []
    said += [f"against: {', '.join(evidence.contradicts)}"] if evidence.contradicts else []
    return f"{name} ({'; '.join(said) or 'nothing speaks for it'})"
