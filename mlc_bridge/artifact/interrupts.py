"""Ctrl-C and SIGTERM at moments of our choosing: noted when they come, acted on by ``check``.

Python raises KeyboardInterrupt between any two bytecodes of the main thread: inside the very code
that cleans up after it, and inside what TVM calls back, where TVM loses it (a bare ``except`` in
its script parser, a ``catch`` in its constant folding) or crashes on it. While interrupts are held
the signal only leaves a note. Other threads never see a signal, so there is nothing to hold in
them, nor where a signal just ends the process.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class HeldInterrupts:
    """Hold with ``hold``, act on what was noted with ``check``, give back with ``release``."""

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._noted: set[int] = set()

    def hold(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if callable(before):
                self._before[number] = before
                signal.signal(number, self._note)

    def check(self) -> None:
        """Do what a noted signal would have done (usually: raise KeyboardInterrupt).

        What raises is raised at each call: the code it passes through may lose it.
        """
        for number in tuple(self._noted):
            self._before[number](number, None)
            self._noted.discard(number)

    def release(self) -> None:
        """Back to the handlers of before; acts on a noted signal as the last thing."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self.check()
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.add(number)
