"""Trainings that are killed: a process that has everything loaded and forks them on request.

Each line on stdin is a JSON request; the child trains (or resumes) as a fresh process would. With
`kill`, it sends itself SIGKILL at one exact moment: `at` a function, before (or `after`) its
`call`-th call. The answer is the child's pid, then, on a line of its own, how it ended.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.conftest import tiny_model, tiny_tokenizer

import onebase
from onebase.model.base import Base
from onebase.runs.run import RunStore
from onebase.training.train import resume

ROOT = Path(__file__).parents[2]


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    warm_up()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            ended = 1
            try:
                carry_out(**json.loads(line))
                ended = 0
            except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(ended)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def warm_up() -> None:
    """Load, before the forks, what a training loads late: it takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.jsonl")
        file.write_text('{"question": "a", "answer": "b"}\n' * 3, encoding="utf-8")
        job = {"data": str(file), "set": {"epochs": 1}}
        jobs = [{"task": method, "method": method, **job} for method in ("full", "p-tuning")]
        carry_out(f"{folder}/w", jobs, "train")


def carry_out(
    workspace: str,
    jobs: list[dict[str, Any]],
    command: str,
    kill: dict[str, Any] | None = None,
    precision: str | None = None,
    architecture: str = "llama",
    config: dict[str, Any] | None = None,
) -> None:
    model: Any = tiny_model(architecture)
    for key, value in (config or {}).items():
        setattr(model.config, key, value)
    if config:
        weights = model.state_dict()
        model = type(model)(model.config).eval()
        model.load_state_dict(weights)
    base = Base(model, tiny_tokenizer(), name="tiny")
    if precision:
        base.hold_in(onebase.model.precision.choose(precision, device="cpu", stored=None), "cpu")
    if kill:
        die(**kill)
    torch.manual_seed(os.getpid())  # whatever else draws numbers
    place = onebase.Workspace(workspace)
    runs = RunStore(place).list()
    if command == "resume" and runs and runs[-1].resumable:
        resume(runs[-1].id, base=base, workspace=place)
    else:
        onebase.train([onebase.Job(**job) for job in jobs], base=base, workspace=place)


def die(at: str, call: int = 1, after: bool = False) -> None:
    """Have this process killed at the `call`-th call of the function that `at` names."""
    module, _, path = at.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


class Trainings:
    """The forking process, as the tests use it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.crash_loop"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, workspace: Path, jobs: list[dict[str, Any]], **request: Any) -> int:
        """Begin or resume the training of `jobs`; the process's id."""
        request = {"workspace": str(workspace), "jobs": jobs, "command": "train", **request}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """How it ended: 0, 1 after an error, -9 killed."""
        return int(self._answer())

    def run(self, workspace: Path, jobs: list[dict[str, Any]], **request: Any) -> int:
        """Begin or resume, and wait."""
        self.start(workspace, jobs, **request)
        return self.wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


if __name__ == "__main__":
    main()
