"""Training makes way for a server of its workspace."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onebase.adapters.workspace import Workspace
from onebase.serving.presence import NICENESS, present, server_runs

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads' niceness")
TRAINING = """
import os, sys, threading, time
from pathlib import Path
from onebase.adapters.workspace import Workspace
from onebase.serving import presence

presence._LOOK_SECONDS = 0.05
idle = threading.Thread(target=time.sleep, args=(30,), daemon=True)
idle.start()
with presence.making_way(Workspace(Path(sys.argv[1]))):
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
    print(*[os.getpriority(os.PRIO_PROCESS, int(n)) for n in os.listdir("/proc/self/task")])
"""


def test_a_server_is_seen_while_it_runs(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    assert not server_runs(workspace)
    with present(workspace):
        assert server_runs(workspace)
        with present(workspace):  # a second one
            assert server_runs(workspace)
        assert server_runs(workspace)
    assert not server_runs(workspace)


def test_a_lock_of_another_user_is_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "ws")
    with present(workspace):
        pass

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr("filelock.FileLock.acquire", forbidden)
    with present(workspace):
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
        with present(workspace):
            out, _ = train(0.2).communicate(timeout=120)
    else:
        training = train(1.0)
        assert training.stdout is not None
        assert training.stdout.readline() == "begun\n"
        if when == "after":
            with present(workspace):
                time.sleep(0.8)
        out, _ = training.communicate(timeout=120)
    found = {int(word) for word in out.replace("begun", "").split()}
    assert found == {os.getpriority(os.PRIO_PROCESS, 0) if when == "never" else NICENESS}
