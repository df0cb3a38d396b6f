"""The process that trains one arm alone: its refusals, its errors, its output and its end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.compare.tiny_comparison import ONE, SETTINGS, Notes, written

from onebase.compare.alone import request_for
from onebase.compare.alone_process import run_alone
from onebase.compare.data import comparison_data
from onebase.errors import DataError, OnebaseError, UsageError, error_from_values
from onebase.model.base import Base
from onebase.runs.render_date import local_time
from onebase.training.job import Job

Request = dict[str, Any]


@pytest.fixture
def request_alone(job: Job, base: Base, tmp_path: Path) -> Request:
    """One lora, as a comparison asks for it."""
    arm = replace(job, task="lora-0", method="lora", set={**SETTINGS, "epochs": 1})
    data = comparison_data(job, ONE, base, local_time())
    return request_for(job, arm, ONE, base, data, tmp_path / "trained")


def site(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `code` in every Python process that starts from now on."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    path = os.pathsep.join([str(folder), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)


def test_rows_that_changed_meanwhile(request_alone: Request, job: Job) -> None:
    rows = [{"input": f"say {number}", "output": "no"} for number in range(24)]
    written(Path(job.data), rows)
    with pytest.raises(DataError, match="has changed since the comparison began") as refused:
        run_alone(request_alone, Notes())
    assert str(job.data) in refused.value.message
    assert refused.value.exit_code == 3


def test_another_base_meanwhile(request_alone: Request) -> None:
    with pytest.raises(UsageError, match="not the base that is compared") as refused:
        run_alone({**request_alone, "base_content": "another"}, Notes())
    assert "--no-alone" in refused.value.remedy


def test_an_error_keeps_its_class_and_its_exit_code(request_alone: Request) -> None:
    wrong = {**request_alone, "arm": {**request_alone["arm"], "set": {"rnak": 3}}}
    with pytest.raises(UsageError, match="'rnak'"):
        run_alone(wrong, Notes())
    ended = subprocess.run(
        [sys.executable, "-m", "onebase.compare.alone"],
        input=json.dumps(wrong).encode(),
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 2
    (line,) = ended.stdout.splitlines()
    error = error_from_values(json.loads(line)["error"])
    assert type(error) is UsageError


def test_an_end_without_an_error(
    request_alone: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line that it printed says why."""
    code = "import torch\ndef fail(count):\n    raise SystemExit('no thread left')\n"
    site(tmp_path / "site", code + "torch.set_num_threads = fail\n", monkeypatch)
    with pytest.raises(OnebaseError, match="The training of lora-0 failed: no thread left"):
        run_alone(request_alone, Notes())
    killed = "import os, torch\ntorch.set_num_threads = lambda count: os.kill(os.getpid(), 9)\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(killed, encoding="utf-8")
    with pytest.raises(OnebaseError, match="memory ran out"):
        run_alone(request_alone, Notes())


def test_what_a_library_prints(
    request_alone: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from C, below Python's own stdout."""
    code = """
import os, torch
begun = torch.set_num_threads
def loud(count):
    print("a library says so", flush=True)
    os.write(1, b"and its C part too\\n")
    begun(count)
torch.set_num_threads = loud
"""
    site(tmp_path / "site", code, monkeypatch)
    cost = run_alone(request_alone, Notes())
    assert cost.seconds > 0
    assert (tmp_path / "trained" / "adapters" / "lora-0").is_dir()


def test_it_ends_with_its_parent(
    request_alone: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the parent ends, and while it writes nothing: nobody would store the result."""
    begun = tmp_path / "begun"
    code = f"""
import os, pathlib, time, torch
def wait(count):
    pathlib.Path({str(begun)!r}).write_text(str(os.getpid()))
    time.sleep(60)
torch.set_num_threads = wait
"""
    site(tmp_path / "site", code, monkeypatch)
    (tmp_path / "request.json").write_text(json.dumps(request_alone), encoding="utf-8")
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path / "request.json")])
    with parent, _ended(parent):
        assert within(30, lambda: begun.exists() and begun.read_text() != "")
        child = int(begun.read_text())
        assert alive(child)
        parent.kill()
        parent.wait()
        ended = within(10, lambda: not alive(child))
        if not ended:
            os.kill(child, signal.SIGKILL)
    assert ended


_PARENT = """
import json, pathlib, sys
from onebase.compare.alone_process import run_alone
from onebase.runs.observer import Observer

run_alone(json.loads(pathlib.Path(sys.argv[1]).read_bytes()), Observer())
"""


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether it is true before so many seconds are over."""
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.1)
    return true()


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


def alive(process: int) -> bool:
    """Whether it runs; one that has ended and was not waited for does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
