"""What stages tell Python's ``logging``: their job, their notes, and how long they took.

The logger is the stage's module, below ``mlc_bridge``; nothing is shown unless the program that
uses the package asks for it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def logged(stage: Callable[P, T]) -> Callable[P, T]:
    """``stage`` (job first, report back), with lines of level INFO and its notes as WARNING."""
    log = logging.getLogger(stage.__module__)

    @functools.wraps(stage)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        log.info("%s: %s", stage.__name__, args[0] if args else kwargs.get("job"))
        start = time.perf_counter()
        report = stage(*args, **kwargs)
        for note in (*getattr(report, "notes", ()), *getattr(report, "findings", ())):
            log.warning("%s: %s", stage.__name__, note)
        log.info("%s: done in %.2f s", stage.__name__, time.perf_counter() - start)
        return report

    return run
