"""The engine's own thread: every call into the compiled model comes from here.

TVM's thread pool belongs to the calling thread and its virtual machine serves one caller, so
requests from any thread pass through a queue, and between two steps the loop takes in what is
there.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from mlc_bridge.engine.generation import ModelFailure
from mlc_bridge.engine.runtime import Runtime
from mlc_bridge.engine.scheduler import Counts, Scheduler, Sequence
from mlc_bridge.engine.threads import start_pool


@dataclass(frozen=True)
class Load:
    """What the engine is doing: sequences running and waiting, free pages of the KV cache."""

    running: int
    waiting: int
    free_pages: int


class Loop:
    """Steps the scheduler while there is work. ``threads`` says how many threads run the kernels,
    ``load`` and ``counts`` what they are at and what they have done.

    Raises what starting the pool or the first token through the model raises.
    """

    def __init__(self, runtime: Runtime, threads: int | None = None) -> None:
        self._inbox: SimpleQueue[Sequence | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._ended: BaseException | None = None
        started: Future[int] = Future()
        self._thread = threading.Thread(
            target=self._run,
            args=(runtime, threads, started),
            name="mlc-bridge-engine",
            daemon=True,
        )
        self.load, self.counts = Load(0, 0, 0), Counts()
        self._thread.start()
        self.threads = started.result()

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises ModelFailure once the loop has ended."""
        with self._lock:
            if self._ended is not None:
                raise ModelFailure("the engine has ended", found=str(self._ended)) from self._ended
            self._inbox.put(sequence)

    @property
    def alive(self) -> bool:
        return self._ended is None

    def close(self) -> None:
        """End the loop; unfinished requests fail. May be called twice."""
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self, runtime: Runtime, threads: int | None, started: Future[int]) -> None:
        try:
            count = start_pool(threads)
            runtime.warm_up()
            scheduler = Scheduler(runtime)
        except BaseException as error:
            started.set_exception(error)
            return
        self.counts = scheduler.counts
        self._look(scheduler)
        started.set_result(count)
        del started
        end: BaseException = ModelFailure("the engine was terminated")
        try:
            while self._take_in(scheduler):
                self._step(scheduler)
                self._look(scheduler)
        except BaseException as error:
            end = error
        with self._lock:
            self._ended = end
            while not self._inbox.empty():
                if (sequence := self._inbox.get()) is not None:
                    scheduler.submit(sequence)
        scheduler.fail_all(end)

    def _take_in(self, scheduler: Scheduler) -> bool:
        """Wait for work when there is none; False when the loop shall end."""
        wait = not scheduler.busy
        while True:
            try:
                sequence = self._inbox.get(block=wait)
            except Empty:
                return True
            if sequence is None:
                return False
            scheduler.submit(sequence)
            wait = False

    def _look(self, scheduler: Scheduler) -> None:
        running, waiting = len(scheduler.running), len(scheduler.waiting)
        self.load = Load(running, waiting, scheduler.runtime.free_pages)

    def _step(self, scheduler: Scheduler) -> None:
        try:
            scheduler.step()
        except Exception as problem:  # whatever tvm raised belongs to the requests, not to the loop
            error = ModelFailure(f"the model failed: {type(problem).__name__}", found=str(problem))
            error.__cause__ = problem
            scheduler.fail_all(error)
