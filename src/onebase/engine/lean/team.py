"""The threads of a step. They claim every phase's work piece by piece, so that a late thread delays nobody.

All threads run the same compiled function. A phase ends when all of its pieces are done, even if some threads
have not arrived: if the other cores are busy, the calling thread does the work alone.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from onebase.engine.lean.jit import compiled
from onebase.engine.lean.vector import I32, I64, Emit, vector_function

_LINE = 16  # int64 numbers per phase: its two counters, in a cache line each


@vector_function("ii", "i")
def _fetch_add(e: Emit, address: Any, value: Any) -> Any:
    return e.b.atomic_rmw("add", e.b.inttoptr(address, I64.as_pointer()), value, "seq_cst")


@vector_function("i", "i")
def _fetch(e: Emit, address: Any) -> Any:
    return e.b.load_atomic(e.b.inttoptr(address, I64.as_pointer()), "seq_cst", 8)


@vector_function("i", "i")
def _yield_cpu(e: Emit, anything: Any) -> Any:
    """Yield the CPU to another thread (sched_yield of the C library)."""
    module = e.b.module
    function = module.globals.get("sched_yield") or ir.Function(
        module, ir.FunctionType(I32, []), "sched_yield"
    )
    return e.b.sext(e.b.call(function, []), I64)


@compiled
def claim(counters, phase, pieces):  # type: ignore[no-untyped-def]
    """Claim the next piece of a phase for this thread; -1 if all are claimed."""
    piece = _fetch_add(counters + 8 * _LINE * phase, 1)
    return piece if piece < pieces else -1


@compiled
def done(counters, phase):  # type: ignore[no-untyped-def]
    """Mark a claimed piece as done."""
    _fetch_add(counters + 8 * _LINE * phase + 64, 1)


@compiled
def wait(counters, phase, pieces):  # type: ignore[no-untyped-def]
    """Wait until all pieces of a phase are done."""
    spins = 0
    while _fetch(counters + 8 * _LINE * phase + 64) < pieces:
        spins += 1
        if spins > 2000:
            _yield_cpu(0)


class Team:
    """`threads` - 1 worker threads beside the one that calls `run`. They end with the team."""

    def __init__(self, threads: int, phases: int) -> None:
        self.threads = threads
        self._shared = _Shared(threads, phases)
        for index in range(threads - 1):
            threading.Thread(target=_work, args=(self._shared, index), daemon=True).start()
        weakref.finalize(self, self._shared.close)

    def run(self, work: Callable[[int, int], None]) -> None:
        """Call `work(thread, counters)` in every thread. Returns only when all have returned, even after an
        interrupt: a late thread would claim pieces of the next step.
        """
        shared = self._shared
        shared.counters[:] = 0
        shared.work, shared.error = work, None
        started = 0
        try:
            for begin in shared.begin:
                begin.release()
                started += 1
            work(0, shared.counters.ctypes.data)
        finally:
            self._join(started)
        if shared.error is not None:
            raise shared.error

    def _join(self, workers: int) -> None:
        """Wait until `workers` workers have finished."""
        interrupt = None
        while workers:
            try:
                self._shared.finished.acquire()
                workers -= 1
            except KeyboardInterrupt as error:
                interrupt = error
        self._shared.work = None
        if interrupt is not None:
            raise interrupt


class _Shared:
    """The state that the threads reference. A reference to the team would keep it alive forever."""

    def __init__(self, threads: int, phases: int) -> None:
        self.counters = np.zeros(phases * _LINE, np.int64)
        self.work: Callable[[int, int], None] | None = None
        self.error: BaseException | None = None
        self.begin = [threading.Semaphore(0) for _ in range(threads - 1)]
        self.finished = threading.Semaphore(0)

    def close(self) -> None:
        """End the workers."""
        for begin in self.begin:
            begin.release()


def _work(shared: _Shared, index: int) -> None:
    while True:
        shared.begin[index].acquire()
        work = shared.work
        if work is None:
            return
        try:
            work(index + 1, shared.counters.ctypes.data)
        except BaseException as error:  # noqa: BLE001  raised again in the calling thread
            shared.error = error
        finally:
            del work  # it references the step's buffers
            shared.finished.release()
