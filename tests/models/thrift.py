"""What makes compiling a tiny model cheaper and changes nothing of what it computes.

Half of such a compile is LLVM's optimizer, a quarter the parser of TVMScript, which looks up the
source lines of every caller each time a kernel or macro is parsed, and a lib of another scheme has
the same attention kernels. Models only: kernels are tested as users compile them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.target import Target

from mlc_bridge.compiler import kv_cache
from mlc_bridge.compiler.target import host_options, make_target

_frame_info = inspect.getframeinfo
_kernels = functools.cache(kv_cache.cpu_kernels)


def quick_target() -> Target:
    """This machine, LLVM's optimizer off."""
    return make_target({**host_options(), "opt-level": 0})


def _without_source(frame: Any, context: int = 1) -> Any:
    return _frame_info(frame, 0 if context == 1 else context)


@contextmanager
def thrifty() -> Iterator[None]:
    before = kv_cache.cpu_kernels
    inspect.getframeinfo, kv_cache.cpu_kernels = _without_source, _kernels
    try:
        yield
    finally:
        inspect.getframeinfo, kv_cache.cpu_kernels = _frame_info, before
