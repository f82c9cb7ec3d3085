"""What holds at the door of every stage: job first, report back.

Its job, its notes and how long it took go to Python's ``logging`` (the logger is the stage's
module, below ``mlc_bridge``; nothing is shown unless the program that uses the package asks for
it). What the file system refuses, a name too long or without permission, is the user's error.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from mlc_bridge.errors import ArtifactError, ConfigError

P = ParamSpec("P")
T = TypeVar("T")


def door(stage: Callable[P, T]) -> Callable[P, T]:
    """``stage`` with lines of level INFO, its notes as WARNING, and OSErrors as ArtifactError."""
    log = logging.getLogger(stage.__module__)

    @functools.wraps(stage)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        job = args[0] if args else kwargs.get("job")
        log.info("%s: %s", stage.__name__, job)
        _check_names(job)
        start = time.perf_counter()
        try:
            report = stage(*args, **kwargs)
        except OSError as error:
            if error.filename is None:
                raise
            what, where = error.strerror or type(error).__name__, str(error.filename)[:200]
            raise ArtifactError(what, where=where) from error
        for note in (*getattr(report, "notes", ()), *getattr(report, "findings", ())):
            log.warning("%s: %s", stage.__name__, note)
        log.info("%s: done in %.2f s", stage.__name__, time.perf_counter() - start)
        return report

    return run


def _check_names(job: object) -> None:
    """A null byte ends a path inside the system's calls: Python refuses it deep in the work."""
    for field in fields(job) if is_dataclass(job) else ():
        value = getattr(job, field.name)
        if isinstance(value, str | Path) and "\0" in str(value):
            raise ConfigError("holds a null byte, which no name can", where=field.name)
