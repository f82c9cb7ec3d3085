"""Every error a user can cause or meet, each naming what, where, found, expected and what to do.

    BridgeError                      exit code 2, but for NotVerified's
    ├── SourceError                  the checkpoint: truncated, missing or ill-shaped tensors
    │   └── UnknownFormat            no source, or more than one, matches the checkpoint
    ├── CannotExpress                the scheme cannot hold this tensor exactly
    ├── ConfigError                  config.json, chat template, recipe or flag values
    ├── ArtifactError                an MLC directory: missing, damaged, not writable, foreign lib
    ├── CompileError                 target or toolchain cannot build the model
    ├── EngineError                  a request the loaded model cannot serve
    │   └── ContextOverflow          prompt plus answer exceed the context window
    ├── NotVerified                  exit code 3: verify ran, and the model is not what it should be
    └── MissingDependency            an optional package is needed; says which to install

Anything else that escapes is a defect of ours and exits with 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class BridgeError(Exception):
    """One paragraph: ``what`` is wrong ``where``, ``found``, ``expected`` and what ``todo``."""

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        todo: str | None = None,
    ) -> None:
        self.what, self.where, self.found, self.expected, self.todo = (
            what, where, found, expected, todo,
        )  # fmt: skip
        super().__init__(self._paragraph())

    def _paragraph(self) -> str:
        text = self.what.rstrip(".")
        if self.where is not None:
            text = f"{self.where}: {text}"
        if self.found is not None:
            text += f"; found {self.found}"
        if self.expected is not None:
            text += f"{',' if self.found is not None else ';'} expected {self.expected}"
        text += "."
        if self.todo:
            text += f" {self.todo.rstrip('.')}."
        return text


class SourceError(BridgeError):
    """The checkpoint is damaged, incomplete or unsafe."""


class UnknownFormat(SourceError):
    """No source format, or more than one, matches; ``evidence`` says why, by source name."""

    def __init__(self, what: str, *, evidence: Mapping[str, object], **about: Any) -> None:
        self.evidence = evidence
        super().__init__(what, **about)


class CannotExpress(BridgeError):
    """``scheme`` cannot hold ``tensor`` exactly; re-quantizing is the user's own, named wish."""

    def __init__(self, tensor: str, scheme: str, reason: str, *, todo: str | None = None) -> None:
        self.tensor, self.scheme, self.reason = tensor, scheme, reason
        super().__init__(
            f"{scheme} cannot hold this tensor exactly: {reason}",
            where=tensor,
            todo=todo or "Choose a scheme that can, or ask for --requantize",
        )


class ConfigError(BridgeError):
    """A config, chat template, recipe or flag value that cannot be used."""


class ArtifactError(BridgeError):
    """An MLC model directory that is missing, damaged, not writable or of another build."""


class CompileError(BridgeError):
    """The target or the toolchain cannot build this model."""


class EngineError(BridgeError):
    """A request the loaded model cannot serve."""


class ContextOverflow(EngineError):
    """Prompt plus answer do not fit the context window."""


class NotVerified(BridgeError):
    """The comparison ended, and a weight or a threshold did not pass: a pipeline's verdict, apart
    from the errors of a run that could not compare.
    """

    exit_code = 3


class MissingDependency(BridgeError):
    """An optional package is needed for this step."""

    def __init__(self, package: str, needed_for: str, install: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package}, which is not installed",
            todo=f"Install it with: {install}",
        )
