"""Work on a stranger's file in a child process with bounds on time and memory.

A chat template is a program, and a tokenizer file can bring the tokenizers library down with the
whole interpreter. No check inside the process can stop ``10 ** (10 ** 10)``, a string doubled in a
loop or an abort in compiled code; the operating system can, so such work runs here:

    parent  Confined("module", memory).ask(question, seconds) -> reply     JSON lines, both ways
    child   python -P -m module memory:  serve(answer)

The child bounds its address space and, per question, its processor time (a timer that kills it).
The parent waits twice as long at most, for a child that sleeps. A child that ended is replaced at
the next question, and it ends by itself when the parent is gone.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows: the parent's patience is the only bound
    resource = None  # type: ignore[assignment]

STARTUP_SECONDS = 60.0
REPLY_BYTES = 8 << 20
_ROOT = str(Path(__file__).parents[2])
_CHUNK = 1 << 16


class Overrun(Exception):
    """The child broke a bound or died; the text says which."""


class Confined:
    """A child running ``module``, started at the first question; see the module docstring."""

    def __init__(self, module: str, memory: int) -> None:
        self._module, self._memory = module, memory
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The child's reply. Raises Overrun; ``seconds`` of processor time at most."""
        line = json.dumps({**question, "seconds": seconds}).encode() + b"\n"
        with self._lock:
            child = self._running()
            try:
                _send(child, line)
                reply: dict[str, Any] = json.loads(_line(child, 2 * seconds))
            except (Overrun, OSError, ValueError) as problem:
                raise Overrun(self._end(child, problem)) from problem
            except BaseException:  # Ctrl-C in between: the next answer would be to this question
                self._end(child, None)
                raise
        return reply

    def close(self) -> None:
        """End the child."""
        with self._lock:
            if self._child is not None:
                _kill(self._child)
                self._child = None

    def _running(self) -> subprocess.Popen[bytes]:
        child = self._child
        if child is None or child.poll() is not None:
            child = self._child = self._start()
            weakref.finalize(self, _kill, child)
            try:
                _line(child, STARTUP_SECONDS)
            except (Overrun, OSError) as problem:
                raise Overrun(f"its process does not start: {self._end(child, problem)}") from None
        return child

    def _start(self) -> subprocess.Popen[bytes]:
        path = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,  # a Ctrl-C at the terminal is the parent's
        )

    def _end(self, child: subprocess.Popen[bytes], problem: BaseException | None) -> str:
        """Kill the child; why it did not answer."""
        slow = isinstance(problem, Overrun)
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.0 if slow else 1.0)
        code = child.returncode
        _kill(child)
        self._child = None
        if code is None or code == -signal.SIGPROF:
            return str(problem) if slow else "it takes too long"
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"it brought its process down ({name})"


def _send(child: subprocess.Popen[bytes], line: bytes) -> None:
    assert child.stdin is not None
    child.stdin.write(line)
    child.stdin.flush()


def _line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line of the child's output. Raises Overrun; OSError at its end."""
    assert child.stdout is not None
    deadline, found = time.monotonic() + seconds, bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        while not found.endswith(b"\n"):
            if not ready.select(deadline - time.monotonic()):
                raise Overrun("it takes too long")
            piece = os.read(child.stdout.fileno(), _CHUNK)
            if not piece:
                raise OSError("the child ended")
            found += piece
            if len(found) > REPLY_BYTES:
                raise Overrun(f"it gives more than {REPLY_BYTES >> 20} MiB")
    return bytes(found)


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()


# --- the child's side --------------------------------------------------------------------------


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer questions until the parent is gone; what ``answer`` raises becomes ``error``."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no reply
    _bound_memory(int(sys.argv[1]))
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        start = time.process_time()
        _bound_time(question.pop("seconds"))
        try:
            reply = answer(question)
        except MemoryError:
            reply = {"error": "it needs too much memory"}
        except BaseException as error:  # a panic of a Rust library is no Exception
            reply = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        _bound_time(0)
        print(json.dumps({**reply, "cpu": time.process_time() - start}), file=out, flush=True)


def _bound_memory(nbytes: int) -> None:
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound_time(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
