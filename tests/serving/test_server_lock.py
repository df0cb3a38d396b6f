"""Training makes way for a server of its workspace."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onebase.adapters.workspace import Workspace
from onebase.serving.server_lock import NICENESS, hold_server_lock, server_runs

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads' niceness")
TRAINING = """
import os, sys, threading, time
from pathlib import Path
from onebase.adapters.workspace import Workspace
from onebase.serving import server_lock

server_lock._CHECK_SECONDS = 0.05
idle = threading.Thread(target=time.sleep, args=(30,), daemon=True)
idle.start()
with server_lock.yield_to_server(Workspace(Path(sys.argv[1]))):
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
    print(*[os.getpriority(os.PRIO_PROCESS, int(n)) for n in os.listdir("/proc/self/task")])
"""


def test_a_server_is_seen_while_it_runs(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    assert not server_runs(workspace)
    with hold_server_lock(workspace):
        assert server_runs(workspace)
        with hold_server_lock(workspace):  # a second one
            assert server_runs(workspace)
        assert server_runs(workspace)
    assert not server_runs(workspace)


def test_a_lock_of_another_user_is_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "ws")
    with hold_server_lock(workspace):
        pass

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("filelock.FileLock.acquire", forbidden)
    with hold_server_lock(workspace):
        assert server_runs(workspace)


@LINUX
@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_every_thread_of_a_training_is_nicer(tmp_path: Path, when: str) -> None:
    if os.getpriority(os.PRIO_PROCESS, 0) >= NICENESS:
        pytest.skip("this process is nicer already")
    workspace = Workspace(tmp_path / "ws")

    def train(seconds: float) -> "subprocess.Popen[str]":
        arguments = [sys.executable, "-c", TRAINING, str(workspace.root), str(seconds)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    if when == "before":
        with hold_server_lock(workspace):
            out, _ = train(0.2).communicate(timeout=120)
    else:
        training = train(1.0)
        assert training.stdout is not None
        assert training.stdout.readline() == "begun\n"
        if when == "after":
            with hold_server_lock(workspace):
                time.sleep(0.8)
        out, _ = training.communicate(timeout=120)
    priorities = {int(word) for word in out.replace("begun", "").split()}
    assert priorities == {os.getpriority(os.PRIO_PROCESS, 0) if when == "never" else NICENESS}
