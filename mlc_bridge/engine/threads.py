"""The threads that run the kernels: TVM's pool, made right for the calling thread.

TVM keeps one pool per *calling* thread and builds it at that thread's first kernel. Left alone it
takes half of the logical CPUs (meant to skip hyper-threads; on a two-core virtual machine that is
one thread) and binds the thread that calls to the first of them. ``config_threadpool`` sets the
size before it builds the pool, so it works in a thread that has not run a kernel yet, whatever the
environment says and whoever imported tvm before; in a thread that already has a pool it cannot add
workers. The engine therefore runs all kernels in one fresh thread of its own and starts the pool
there. Workers share the allowed CPUs instead of being pinned, so that two engines do not queue up
on the same core.
"""

from __future__ import annotations

import os
from pathlib import Path

from mlc_bridge.errors import EngineError

SHARE_ALL_CPUS = -3  # TVM's affinity mode kSpecifyThreadShareAllCore


def allowed_cpus() -> list[int]:
    """Logical CPUs this process may use.

    The union over the process's threads: TVM binds a thread that ran a kernel under its default
    pool to fewer CPUs, and threads started from that one inherit the loss.
    """
    cpus: set[int] = set(os.sched_getaffinity(0))
    for task in Path("/proc/self/task").glob("*"):
        try:
            cpus |= os.sched_getaffinity(int(task.name))
        except ProcessLookupError:
            continue
    return sorted(cpus)


def physical_cpus() -> list[int]:
    """One allowed logical CPU for each physical core."""
    cores: dict[str, int] = {}
    for cpu in allowed_cpus():
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        name = siblings.read_text().strip() if siblings.exists() else str(cpu)
        cores.setdefault(name, cpu)
    return sorted(cores.values())


def start_pool(threads: int | None = None) -> int:
    """Start the calling thread's pool and return the number of threads that TVM reports.

    ``threads`` defaults to the physical cores this process may use. Raises EngineError when more
    are asked for than there are CPUs, or when this thread's pool was already started with fewer.
    """
    import tvm

    cpus = physical_cpus()
    wanted = threads or len(cpus)
    if wanted > len(cpus):
        cpus = allowed_cpus()
    if not 1 <= wanted <= len(cpus):
        raise EngineError("threads", found=wanted, expected=f"1 to {len(cpus)} on this machine")
    configure = tvm.get_global_func("runtime.config_threadpool")
    configure(SHARE_ALL_CPUS, wanted, [str(cpu) for cpu in cpus])
    started = int(tvm.get_global_func("runtime.NumThreads")())
    if started != wanted:
        raise EngineError(
            "TVM's thread pool did not start with the threads asked for",
            found=started,
            expected=wanted,
        )
    return started
