"""How a stage tells its progress: one plain callable, drawn by the CLI, silent by default."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    def __call__(self, label: str, done: int, total: int) -> None:
        """``done`` of ``total`` units (bytes, tensors, tokens) of the step named ``label``."""
        ...


def silent(label: str, done: int, total: int) -> None:
    """The default: says nothing."""
