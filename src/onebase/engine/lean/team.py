"""Several threads in one step: every phase's work is claimed piece by piece, and a late thread delays nobody.

All threads run the same compiled function. A phase is over when all of its pieces are done, not when all
threads have come: beside a busy core the calling thread does the work alone.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from onebase.engine.lean.jit import compiled
from onebase.engine.lean.vector import I32, I64, Emit, vector_function

_LINE = 16  # int64 numbers of a phase's counters: two cache lines, one for each


@vector_function("ii", "i")
def _fetch_add(e: Emit, address: Any, value: Any) -> Any:
    return e.b.atomic_rmw("add", e.b.inttoptr(address, I64.as_pointer()), value, "seq_cst")


@vector_function("i", "i")
def _fetch(e: Emit, address: Any) -> Any:
    return e.b.load_atomic(e.b.inttoptr(address, I64.as_pointer()), "seq_cst", 8)


@vector_function("i", "i")
def _give_way(e: Emit, anything: Any) -> Any:
    """Let another thread run (sched_yield of the C library)."""
    module = e.b.module
    function = module.globals.get("sched_yield") or ir.Function(
        module, ir.FunctionType(I32, []), "sched_yield"
    )
    return e.b.sext(e.b.call(function, []), I64)


@compiled
def claim(counters, phase, pieces):  # type: ignore[no-untyped-def]
    """The next piece of a phase for this thread, or -1 where all are taken."""
    piece = _fetch_add(counters + 8 * _LINE * phase, 1)
    return piece if piece < pieces else -1


@compiled
def done(counters, phase):  # type: ignore[no-untyped-def]
    """Say that a piece is done."""
    _fetch_add(counters + 8 * _LINE * phase + 64, 1)


@compiled
def wait(counters, phase, pieces):  # type: ignore[no-untyped-def]
    """Return when all pieces of a phase are done."""
    spins = 0
    while _fetch(counters + 8 * _LINE * phase + 64) < pieces:
        spins += 1
        if spins > 2000:
            _give_way(0)


class Team:
    """`threads` - 1 helpers of the thread that calls `run`. They end with the team."""

    def __init__(self, threads: int, phases: int) -> None:
        self.threads = threads
        self._shared = _Shared(threads, phases)
        for index in range(threads - 1):
            threading.Thread(target=_help, args=(self._shared, index), daemon=True).start()
        weakref.finalize(self, self._shared.close)

    def run(self, work: Callable[[int, int], None]) -> None:
        """Call `work(thread, counters)` in every thread; returns when all have returned, interrupted or
        not: a thread that came late to a step would take pieces of the next one.
        """
        shared = self._shared
        shared.counters[:] = 0
        shared.work, shared.error = work, None
        begun = 0
        try:
            for begin in shared.begin:
                begin.release()
                begun += 1
            work(0, shared.counters.ctypes.data)
        finally:
            self._gather(begun)
        if shared.error is not None:
            raise shared.error

    def _gather(self, begun: int) -> None:
        """Wait for so many helpers."""
        interrupted = None
        while begun:
            try:
                self._shared.finished.acquire()
                begun -= 1
            except KeyboardInterrupt as error:
                interrupted = error
        self._shared.work = None
        if interrupted is not None:
            raise interrupted


class _Shared:
    """What a team's threads hold: not the team itself, which would never end then."""

    def __init__(self, threads: int, phases: int) -> None:
        self.counters = np.zeros(phases * _LINE, np.int64)
        self.work: Callable[[int, int], None] | None = None
        self.error: BaseException | None = None
        self.begin = [threading.Semaphore(0) for _ in range(threads - 1)]
        self.finished = threading.Semaphore(0)

    def close(self) -> None:
        """End the helpers."""
        for begin in self.begin:
            begin.release()


def _help(shared: _Shared, index: int) -> None:
    while True:
        shared.begin[index].acquire()
        work = shared.work
        if work is None:
            return
        try:
            work(index + 1, shared.counters.ctypes.data)
        except BaseException as error:  # noqa: BLE001  it is raised where the step was begun
            shared.error = error
        finally:
            del work  # it holds what the step worked on
            shared.finished.release()
