"""Why a tensor is not there: told from the tensors that are."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from mlc_bridge.errors import SourceError

EXPERT = re.compile(r"^(.*\.experts)\.\d+\.")


def lacks(name: str, names: Collection[str], home: Path) -> SourceError:
    """The error for a tensor ``name`` that is not among ``names``."""
    found, todo = _why(name, names)
    return SourceError(
        "the checkpoint lacks this tensor", where=name, found=found, expected=f"in {home}",
        todo=todo,
    )  # fmt: skip


def _why(name: str, names: Collection[str]) -> tuple[str | None, str]:
    layer = name.rpartition(".")[0]
    siblings = [n for n in names if n.startswith(f"{layer}.")]
    if siblings:
        return f"{siblings[0]} beside it", "The layer is incomplete; fetch the checkpoint again"
    if (expert := EXPERT.match(name)) and (
        joined := [n for n in names if re.fullmatch(re.escape(expert[1]) + r"\.[a-z_]+", n)]
    ):
        return f"all experts in one tensor, {joined[0]}", "Save a tensor for each expert"
    if name.startswith("lm_head."):
        return "no lm_head in the file", (
            "If the model's head is its embedding, config.json must say tie_word_embeddings true; "
            "else the file is incomplete"
        )
    tail = name.removeprefix("model.")
    if other := next((n for n in names if n == tail or n.endswith(f".{tail}")), None):
        prefix = other.removesuffix(tail)
        return f"{other}: its names have another prefix", (
            f"Save the tensors under names that begin with model. in place of {prefix}, without "
            "those of vision, audio and other parts"
            if prefix
            else "Save the tensors under names that begin with model. (but for lm_head's)"
        )
    return None, "Fetch the checkpoint again, or check that config.json belongs to it"
