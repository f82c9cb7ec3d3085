"""Interrupts are held, not lost: each one acts at ``check`` or at ``release``."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mlc_bridge.artifact.interrupts import HeldInterrupts


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_raised_by_every_check_and_by_release(number: signal.Signals) -> None:
    held = HeldInterrupts()
    held.hold()
    held.check()
    os.kill(os.getpid(), number)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            held.check()
    with pytest.raises(KeyboardInterrupt):
        held.release()
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_handler_that_returns_is_called_once() -> None:
    came = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    held = HeldInterrupts()
    held.hold()
    os.kill(os.getpid(), signal.SIGINT)
    assert came == []
    held.check()
    held.check()
    held.release()
    assert came == [signal.SIGINT]


def test_the_outer_of_two_holds_hears_it_too() -> None:
    outer, inner = HeldInterrupts(), HeldInterrupts()
    outer.hold()
    inner.hold()
    os.kill(os.getpid(), signal.SIGINT)
    inner.release()
    with pytest.raises(KeyboardInterrupt):
        outer.release()


def test_a_signal_that_ends_the_process_is_not_held() -> None:
    code = (
        "import os, signal\n"
        "from mlc_bridge.artifact.interrupts import HeldInterrupts\n"
        "HeldInterrupts().hold()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('still here')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (ran.returncode, ran.stdout) == (-signal.SIGTERM, b"")
