"""Progress bars, the only ones of the project; plain lines where stderr is no terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY = 5.0
"""Seconds between two lines outside a terminal."""


class Bars:
    """``with Bars() as progress``: a ``Progress`` callable for the stages."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._told = 0.0
        self._progress = Progress(
            TextColumn("{task.description:12}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def pause(self) -> None:
        """Take the bars away, so that text can be written; the next step brings them back."""
        self._progress.stop()

    def __call__(self, label: str, done: int, total: int) -> None:
        if label not in self._tasks:
            self._end_single_steps()
            self._tasks[label] = self._progress.add_task(label, total=total)
            self._started[label] = self._told = time.monotonic()
            self._line(f"{label} ...")
        elif time.monotonic() - self._told >= EVERY and done < total:
            self._told = time.monotonic()
            self._line(self._so_far(label, done, total))
        if not self._progress.live.is_started:
            self._progress.start()
        self._progress.update(self._tasks[label], completed=done, total=total)

    def _end_single_steps(self) -> None:
        """A step that is told once is over when the next one begins."""
        for task in self._progress.tasks:
            if task.total == 1:
                self._progress.update(task.id, completed=1)

    def _so_far(self, label: str, done: int, total: int) -> str:
        spent = time.monotonic() - self._started[label]
        left = f", about {spent / done * (total - done):.0f} s left" if done else ""
        return f"{label} {done / total:.0%} ({done} of {total}) after {spent:.0f} s{left}"

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, soft_wrap=True)
