"""Source formats: one file each, one word each in ``SOURCES``; ``detect`` finds the right one."""

from __future__ import annotations

from collections.abc import Mapping

from mlc_bridge.errors import UnknownFormat
from mlc_bridge.registry import Table, table
from mlc_bridge.sources.autoawq import AutoAWQ
from mlc_bridge.sources.autoawq_gemv import AutoAWQGemv
from mlc_bridge.sources.autoawq_gemv_fast import AutoAWQGemvFast
from mlc_bridge.sources.autoawq_marlin import AutoAWQMarlin
from mlc_bridge.sources.bitsandbytes import BitsAndBytes
from mlc_bridge.sources.checkpoint import Checkpoint
from mlc_bridge.sources.compressed_tensors import CompressedTensors
from mlc_bridge.sources.dense import Dense
from mlc_bridge.sources.foreign import INSTEAD, foreign
from mlc_bridge.sources.gptq import GPTQ
from mlc_bridge.sources.hf_fp8 import HFFP8
from mlc_bridge.sources.llm_awq import LlmAwq
from mlc_bridge.sources.modelopt import ModelOpt
from mlc_bridge.sources.msmodelslim import MsModelSlim
from mlc_bridge.sources.mxfp4 import MXFP4
from mlc_bridge.sources.source import Evidence, Source, method_said

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
    ModelOpt(),
    MXFP4(),
    BitsAndBytes(),
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

    Raises UnknownFormat in one paragraph: what the checkpoint is and what to do where that is
    known, else what speaks against the nearest source. All evidence is on the error, and
    ``inspect`` shows it.
    """
    names = tuple(SOURCES) if wanted in (None, "auto") else ALIASES.get(str(wanted), (str(wanted),))
    evidence = {name: SOURCES[name].evidence(ckpt) for name in names}
    other = foreign(ckpt.settings, ckpt.names)
    if other is not None:
        raise UnknownFormat(
            f"this is {other.name} ({other.about}): not supported",
            where=ckpt.path, todo=INSTEAD, evidence=evidence,
        )  # fmt: skip
    fitting = [name for name in names if evidence[name].matches]
    if len(fitting) == 1:
        return SOURCES[fitting[0]]
    if fitting:
        raise UnknownFormat(
            "more than one source format fits this checkpoint", where=ckpt.path,
            found=", ".join(fitting), todo="Name the format with --source-format",
            evidence=evidence,
        )  # fmt: skip
    raise _none_fits(ckpt, wanted, evidence)


def _none_fits(
    ckpt: Checkpoint, wanted: str | None, evidence: Mapping[str, Evidence]
) -> UnknownFormat:
    method = ckpt.quantization.get("quant_method")
    known = method is None or any(method_said(ckpt) in e.supports for e in evidence.values())
    if wanted in (None, "auto") and not known:
        return UnknownFormat(
            f"quant_method {str(method)[:40]!r} is of a tool that is not known here",
            where=ckpt.path, todo=INSTEAD, evidence=evidence,
        )  # fmt: skip
    nearest = max(
        evidence, key=lambda x: (len(evidence[x].supports), -len(evidence[x].contradicts))
    )
    return UnknownFormat(
        "no source format fits this checkpoint"
        if wanted in (None, "auto")
        else f"this is not a checkpoint of the wanted format {wanted}",
        where=ckpt.path,
        found="; ".join(evidence[nearest].contradicts)[:200] or "nothing that speaks for it",
        expected=f"a checkpoint of {nearest}",
        todo="If all its weights are float, --source-format dense reads them"
        if nearest == "dense" and wanted in (None, "auto")
        else "mlc-bridge inspect --verbose shows its tensors and what speaks for each format",
        evidence=evidence,
    )
