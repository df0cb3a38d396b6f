"""The lock of a running server, and the low priority of training beside it.

A server holds a lock on its workspace while it runs. While the lock is held, training lowers the
priority of all its threads: streams keep most of the cores, and training uses the rest.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from onebase.adapters.workspace import Workspace

NICENESS = 15
_CHECK_SECONDS = 5.0
_LINUX = sys.platform.startswith("linux")


@contextmanager
def hold_server_lock(workspace: Workspace) -> Iterator[None]:
    """Hold the server lock while the block runs. Only the first of several servers gets it."""
    lock = _lock(workspace)
    workspace.root.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout, PermissionError):  # held, or created, by another server
        lock.acquire(timeout=0)
    try:
        yield
    finally:
        lock.release()


def server_runs(workspace: Workspace) -> bool:
    """Whether a server of this workspace is running."""
    lock = _lock(workspace)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except (Timeout, PermissionError):  # held, or created by another user's server
        return True


@contextmanager
def yield_to_server(workspace: Workspace) -> Iterator[None]:
    """Lower this process's priority if a server is running, or starts while the block runs."""
    finished = threading.Event()

    def wait_for_server() -> None:
        while not server_runs(workspace):
            if finished.wait(_CHECK_SECONDS):
                return
        lower_priority()

    watcher = threading.Thread(target=wait_for_server, name="wait for a server", daemon=True)
    if server_runs(workspace):
        lower_priority()
    else:
        watcher.start()
    try:
        yield
    finally:
        finished.set()


def lower_priority() -> None:
    """Raise the niceness of every thread of this process. Does nothing on systems without niceness."""
    if not hasattr(os, "setpriority"):
        return
    # On Linux, niceness is a property of a thread. It matters only within one session: the kernel
    # shares the CPU evenly between sessions (and a session's own niceness would persist in the user's
    # terminal).
    threads = [int(name) for name in os.listdir("/proc/self/task")] if _LINUX else [0]
    for thread in threads:
        with suppress(OSError):  # the thread has ended
            if os.getpriority(os.PRIO_PROCESS, thread) < NICENESS:
                os.setpriority(os.PRIO_PROCESS, thread, NICENESS)


def _lock(workspace: Workspace) -> FileLock:
    return FileLock(workspace.root / ".server.lock")
