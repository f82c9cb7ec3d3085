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
        signal.signal(signal.SIGTERM, _terminated)
        try:
            command(*args, **kwargs)
        except BridgeError as error:
            _leave(2, f"error: {error}")
        except KeyboardInterrupt:
            _leave(130, "interrupted: nothing was left behind")
        except BrokenPipeError:  # the reader of our output went away: `mlc-bridge ... | head`
            sys.stderr.close()
            sys.exit(141)
        except Exception as error:
            _leave(
                1,
                f"unexpected {type(error).__name__}: {error}\n"
                f"This is a defect of mlc-bridge. Run again with {TRACEBACK} to see where.",
            )

    return run


_traceback_wanted: list[bool] = []


def show_tracebacks() -> None:
    """Print where an error came from, for the rest of this process."""
    _traceback_wanted.append(True)


def _leave(code: int, text: str) -> NoReturn:
    if _traceback_wanted:
        traceback.print_exc()
    print(text, file=sys.stderr)
    sys.exit(code)


def _terminated(*_: Any) -> NoReturn:
    sys.exit(143)  # SystemExit unwinds, so temporary files are removed as for Ctrl-C
