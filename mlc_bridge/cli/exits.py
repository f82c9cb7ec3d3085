"""How a command ends: exit codes, one-paragraph errors, and nothing left behind by a signal."""

from __future__ import annotations

import functools
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from mlc_bridge.errors import BridgeError

TRACEBACK = "--traceback"


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the exit codes of the package docstring."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        stop = _Stop()
        try:
            command(*args, **kwargs)
        except BrokenPipeError:  # the reader of our output went away: `mlc-bridge ... | head`
            sys.stderr.close()
            sys.exit(141)
        except (KeyboardInterrupt, Exception) as error:
            if stop.code is not None:
                left = "; ".join(getattr(error, "__notes__", ())) or "nothing was left behind"
                _leave(stop.code, f"interrupted: {left}")
            if isinstance(error, BridgeError):
                _leave(error.exit_code, f"error: {error}")
            if isinstance(error, OSError) and error.filename is not None:
                _leave(2, f"error: {str(error.filename)[:200]}: {error.strerror}.")
            _leave(
                1,
                f"unexpected {type(error).__name__}: {error}\n"
                f"This is a defect of mlc-bridge. Run again with {TRACEBACK} to see where.",
            )

    return run


class _Stop:
    """Ctrl-C and SIGTERM as KeyboardInterrupt, so that everything unwinds and cleans up.

    Remembers the signal: an interrupt inside a callback of TVM comes back as TVM's own error.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._raise)

    def _raise(self, number: int, _: Any) -> NoReturn:
        self.code = 128 + number
        raise KeyboardInterrupt


_traceback_wanted: list[bool] = []


def show_tracebacks() -> None:
    """Print where an error came from, for the rest of this process."""
    _traceback_wanted.append(True)


def _leave(code: int, text: str) -> NoReturn:
    if _traceback_wanted:
        traceback.print_exc()
    print(text, file=sys.stderr)
    sys.exit(code)
