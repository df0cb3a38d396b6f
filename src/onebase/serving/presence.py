"""Training makes way for a server of the same workspace.

A server holds a lock while it runs. A training that finds it held lowers its own priority, of all its
threads, so that the streams keep most of the cores; it takes all that the server leaves.
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
_LOOK_SECONDS = 5.0
_LINUX = sys.platform.startswith("linux")


@contextmanager
def present(workspace: Workspace) -> Iterator[None]:
    """Let trainings know of a server while the block runs. Several servers are one."""
    lock = _lock(workspace)
    workspace.root.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout, PermissionError):  # another server has it, or has had it
        lock.acquire(timeout=0)
    try:
        yield
    finally:
        lock.release()


def server_runs(workspace: Workspace) -> bool:
    """Whether a server of this workspace runs."""
    lock = _lock(workspace)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except (Timeout, PermissionError):  # held, or a server's of another user
        return True


@contextmanager
def making_way(workspace: Workspace) -> Iterator[None]:
    """Lower this process's priority when a server is there, or comes, while the block runs."""
    over = threading.Event()

    def look() -> None:
        while not server_runs(workspace):
            if over.wait(_LOOK_SECONDS):
                return
        lower_priority()

    watching = threading.Thread(target=look, name="make way for a server", daemon=True)
    if server_runs(workspace):
        lower_priority()
    else:
        watching.start()
    try:
        yield
    finally:
        over.set()


def lower_priority() -> None:
    """Make every thread of this process nicer than a server's; where the system has no such thing,
    nothing happens.
    """
    if not hasattr(os, "setpriority"):
        return
    # On Linux a niceness belongs to a thread. It counts among the processes of one session; between
    # two sessions the kernel shares evenly, whatever it is (and a session's own niceness would stay
    # behind in the user's terminal).
    threads = [int(name) for name in os.listdir("/proc/self/task")] if _LINUX else [0]
    for thread in threads:
        with suppress(OSError):  # it has ended, or is nicer already
            if os.getpriority(os.PRIO_PROCESS, thread) < NICENESS:
                os.setpriority(os.PRIO_PROCESS, thread, NICENESS)


def _lock(workspace: Workspace) -> FileLock:
    return FileLock(workspace.root / ".server.lock")
