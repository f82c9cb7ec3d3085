"""Ctrl-C at moments of our choosing: noted when it comes, raised where nothing is half done.

Python raises KeyboardInterrupt between any two bytecodes of the main thread, also inside the very
code that cleans up after it. While interrupts are held, the signal only leaves a note; ``check``
raises it. Other threads never see the signal, so there is nothing to hold in them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class HeldInterrupts:
    """Hold with ``hold``, raise a noted one with ``check``, give back with ``release``."""

    def __init__(self) -> None:
        self._noted = False
        self._before: Callable[[int, FrameType | None], Any] | None = None

    def hold(self) -> None:
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._note)

    def check(self) -> None:
        """Do what the signal would have done (usually: raise KeyboardInterrupt), if one came."""
        if self._noted and self._before is not None:
            self._noted = False
            self._before(signal.SIGINT, None)

    def release(self) -> None:
        """Back to the handler of before; raises a noted interrupt as the last thing."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self.check()
            self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
