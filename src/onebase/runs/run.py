"""A run's folder: its config, its measurements, and how it ended."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from filelock import FileLock, Timeout

from onebase.adapters.workspace import Workspace, write_whole
from onebase.errors import CorruptFileError, UsageError, unknown
from onebase.language import say

Ending = Literal["finished", "interrupted", "failed"]
Status = Literal["running"] | Ending
_LOCK_SECONDS = 1.0  # a process that asks for a run's status holds its lock for a moment


@dataclass(frozen=True)
class Run:
    """One run's folder: config.yaml, metrics.jsonl, checkpoints/ and, at the end, summary.json.

    The process that works on it holds `.lock`; the system frees the lock however that process ends.
    """

    path: Path

    @classmethod
    def create(cls, workspace: Workspace, config: dict[str, Any]) -> "Run":
        """Begin a run: a new folder holding its config."""
        workspace.runs.mkdir(parents=True, exist_ok=True)
        while True:
            run = cls(workspace.runs / _run_id(datetime.now(UTC)))
            try:
                run.path.mkdir()
            except FileExistsError:
                continue  # another run began within the same 15 microseconds
            run.write_config(config)
            return run

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.yaml; again where something was decided after the run began."""
        text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
        write_whole(self.path / "config.yaml", text)

    @property
    def id(self) -> str:
        """Like `20261124-101530-ab12`: sorts by the time of creation."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go; not created here."""
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """Where measurements are kept, one a line."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Where sampled answers are kept for the user to look at, one a line."""
        return self.path / "samples.jsonl"

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.yaml: the settings of the run."""
        file = self.path / "config.yaml"
        try:
            value = yaml.safe_load(file.read_bytes())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise _damaged(file, " ".join(str(error).split())) from error
        if not isinstance(value, dict):
            raise _damaged(file, say("it holds no mapping", "内容不是键值表"))
        return value

    @property
    def summary(self) -> dict[str, Any]:
        """How the run ended; empty while it has not."""
        file = self.path / "summary.json"
        try:
            value = json.loads(file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise _damaged(file, str(error)) from error
        if not isinstance(value, dict) or value.get("status") not in get_args(Ending):
            raise _damaged(file, say("it states no known status", "其中没有有效的状态"))
        return value

    @property
    def status(self) -> Status:
        """How the run ended; `interrupted` where its process ended without a summary."""
        status: Status | None = self.summary.get("status")
        if status is not None:
            return status
        # A run without a lock file was created just now; its process is about to take the lock.
        return "interrupted" if self._lock.exists() and not self.held else "running"

    @property
    def is_race(self) -> bool:
        """Whether it is a race of many configurations of one task."""
        return "race" in self.config

    @property
    def held(self) -> bool:
        """Whether a process works on it now."""
        if not self._lock.exists():
            return False
        lock = FileLock(self._lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # another user's folder: it can't be resumed from here
            return False
        lock.release()
        return False

    @property
    def resumable(self) -> bool:
        """Whether it can be resumed: it was interrupted or failed before its end, and no process works
        on it. A race can't be resumed; it has stored its best configuration.
        """
        ended = self.status == "interrupted" or bool(self.summary.get("resumable"))
        return ended and not self.held and not self.is_race

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Take the lock: one process works on a run. Raises UsageError where another one does."""
        lock = FileLock(self._lock)
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout as error:
            raise still_running(self) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def log(self, **fields: Any) -> None:
        """Append one line of measurements."""
        text = json.dumps(fields, ensure_ascii=False) + "\n"
        with self.metrics_file.open("a+b") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # the process was killed while it wrote the line
                    stream.seek(0)
                    stream.truncate(stream.read().rfind(b"\n") + 1)
            stream.write(text.encode())

    def mark(self) -> int:
        """Sync the log to the disk; returns its size in bytes."""
        if not self.metrics_file.exists():
            return 0
        with self.metrics_file.open("rb") as stream:
            os.fsync(stream.fileno())
            return stream.seek(0, os.SEEK_END)

    def metrics(self) -> list[dict[str, Any]]:
        """Every line logged, in order, without a last line that is only half written."""
        file, lines = self.metrics_file, []
        if not file.exists():
            return []
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
            try:
                value = json.loads(line)
            except ValueError as error:
                raise _bad_line(file, number, str(error)) from error
            if not isinstance(value, dict):
                raise _bad_line(file, number, say("no JSON object", "不是 JSON 对象"))
            lines.append(value)
        return lines

    def finish(self, status: Ending, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        value = {**summary, "status": status, "ended": ended}
        text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        write_whole(self.path / "summary.json", text)

    def reopen(self) -> None:
        """Delete summary.json: the run is being resumed."""
        (self.path / "summary.json").unlink(missing_ok=True)


class RunStore:
    """The runs of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def get(self, id: str) -> Run:
        """The run with this id, or the only one whose id begins with it."""
        runs = {run.id: run for run in self.list()}
        if id in runs:
            return runs[id]
        matches = [name for name in runs if id and name.startswith(id)]
        if not matches:
            raise unknown("run", "训练记录", id, runs)
        if len(matches) > 1:
            listed = ", ".join(matches)
            raise UsageError(
                say(f"Several runs begin with {id!r}.", f"有多个训练记录以 {id!r} 开头。"),
                say(f"Give more of the id: {listed}.", f"请写出更完整的编号：{listed}。"),
            )
        return runs[matches[0]]

    # Last in the class: below it, `list` in an annotation would mean this method.
    def list(self) -> list[Run]:
        """Every run, newest last."""
        # A folder without a config was being created when its process was killed.
        return [Run(file.parent) for file in sorted(self.workspace.runs.glob("*/config.yaml"))]


def size_of(file: Path) -> int:
    """The size in bytes; 0 where there is no file."""
    return file.stat().st_size if file.exists() else 0


def cut(file: Path, size: float) -> None:
    """Cut a file off after its first `size` bytes."""
    if size_of(file) > size:
        os.truncate(file, int(size))


def still_running(run: Run) -> UsageError:
    """The error for a run that another process works on."""
    return UsageError(
        say(f"Run {run.id} is still running.", f"训练 {run.id} 仍在运行。"),
        say(
            "Wait until it ends, or stop it with Ctrl-C first.",
            "请等待其结束，或先用 Ctrl-C 停止它。",
        ),
    )


def _run_id(now: datetime) -> str:
    """The time, its last part the fraction of the second in 65536ths, so that ids sort."""
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond * 65536 // 1_000_000:04x}"


def _damaged(file: Path, reason: str) -> CorruptFileError:
    return CorruptFileError(
        say(f"{file} is damaged: {reason}.", f"{file} 已损坏：{reason}。"),
        say(
            f"Put back a copy of it, or delete the run's folder {file.parent}.",
            f"请从备份恢复该文件，或删除该训练记录的目录 {file.parent}。",
        ),
    )


def _bad_line(file: Path, number: int, reason: str) -> CorruptFileError:
    return CorruptFileError(
        say(
            f"{file}, line {number}, is damaged: {reason}.",
            f"{file} 第 {number} 行已损坏：{reason}。",
        ),
        say("Delete that line.", "请删除该行。"),
    )
