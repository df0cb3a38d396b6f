"""The adapter store: numbered versions of each task's adapter, one of them current.

On disk, `adapters/<task>/` holds a folder for each version and three small text files:
`current` (a version), `history` (the versions that were current before, oldest first) and
`last` (the highest version number ever used, so that none is used twice).
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from onebase.adapters.onebase_json import (
    CONFIG,
    MODEL_CONFIG,
    RECORD,
    copied,
    damaged_file,
    read_object,
)
from onebase.adapters.workspace import Workspace, write_whole
from onebase.errors import CorruptFileError, UsageError, unknown
from onebase.language import say
from onebase.model.fetch import file_sha256

WEIGHTS = "adapter_model.safetensors"
MODEL = "model.safetensors"  # a whole model, from full fine-tuning, in place of WEIGHTS

_TASK_NAME = re.compile(r"[\w-][\w.-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class StoredAdapter:
    """One version of a task's adapter; `record` is the content of its onebase.json."""

    task: str
    version: int
    path: Path
    current: bool
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name, `task@version`."""
        return f"{self.task}@{self.version}"

    @property
    def method(self) -> str:
        """The method that trained it."""
        return str(self.record.get("method", ""))

    @property
    def base(self) -> str:
        """The name of the base that it was trained on."""
        return str(self.record.get("base", ""))

    @property
    def created(self) -> str:
        """When it was stored, ISO 8601 in UTC."""
        return str(self.record.get("created", ""))

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics measured in training."""
        metrics = self.record.get("metrics")
        return dict(metrics) if isinstance(metrics, dict) else {}

    @property
    def bytes(self) -> int:
        """The size of its files in bytes."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def check_task_name(name: str) -> None:
    """Raise `UsageError` unless `name` is valid as a task's name."""
    if name == "base":
        raise UsageError(
            say("'base' can't be a task's name.", "'base' 不能用作任务名。"),
            say(
                "It means the base model without an adapter. Choose another name.",
                "它表示不带适配器的基座模型，请换一个名称。",
            ),
        )
    if not _TASK_NAME.fullmatch(name):
        raise UsageError(
            say(f"{name!r} can't be a task's name.", f"{name!r} 不能用作任务名。"),
            say(
                "Use 1 to 64 letters, digits, '-', '_' or '.', with no leading dot.",
                "请使用 1 到 64 个文字（含汉字）、数字、“-”、“_”或“.”，且不以点开头。",
            ),
        )


class AdapterStore:
    """The adapters of one workspace. Several processes may use the same folder."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def tasks(self) -> list[str]:
        """The names of the tasks that have a version, sorted."""
        root = self.workspace.adapters
        if not root.is_dir():
            return []
        return sorted(folder.name for folder in root.iterdir() if self._versions(folder.name))

    def get(self, name: str) -> StoredAdapter:
        """The adapter named `task` (its current version) or `task@3`.

        Raises `UsageError` for an unknown name, `CorruptFileError` for a damaged version.
        """
        task, version = self._resolve(name)
        return self._read(task, version)

    def add(
        self,
        task: str,
        write: Callable[[Path], None],
        record: Mapping[str, Any],
        *,
        promote: bool = True,
    ) -> StoredAdapter:
        """Store what `write` writes into the folder that it gets, as the task's next version.

        `write` creates adapter_config.json and adapter_model.safetensors; `record` goes into
        onebase.json. After an interruption at any moment there is no partial version.
        """
        check_task_name(task)
        folder = self._folder(task)
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock(task):
            self._sweep(task)
            version = max([_number(folder / "last") or 0, *self._versions(task)]) + 1
            partial = self._hidden(task, version)
            partial.mkdir()
            try:
                write(partial)
                record = {
                    **record,
                    "task": task,
                    "version": version,
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                    "sha256": file_sha256(_weights(partial)),
                }
                text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
                (partial / RECORD).write_text(text, encoding="utf-8")
                write_whole(folder / "last", f"{version}\n")
                partial.rename(folder / str(version))
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            if promote:
                self._promote(task, version)
            return self._read(task, version)

    def promote(self, name: str) -> StoredAdapter:
        """Make the version `task@2` the current one of its task."""
        task, _ = self._resolve(name, bare=False)
        with self._lock(task):
            version = self._resolve(name, bare=False)[1]  # it may have been removed meanwhile
            self._read(task, version)  # a damaged version is not promoted
            self._promote(task, version)
            return self._read(task, version)

    def rollback(self, task: str) -> StoredAdapter:
        """Make the previously current version current; repeated, the one before that."""
        self._check_known(task)
        with self._lock(task):
            history = self._folder(task) / "history"
            current, versions = self._current(task), self._versions(task)
            earlier = _numbers(history)
            while earlier:
                version = earlier.pop()
                if version != current and version in versions:
                    self._read(task, version)  # a damaged version is not promoted
                    # `current` first: a repetition of it at the end of `history` does no harm.
                    self._write_current(task, version)
                    write_whole(history, "".join(f"{number}\n" for number in earlier))
                    return self._read(task, version)
        raise UsageError(
            say(
                f"{task!r} has no earlier version to roll back to.",
                f"{task!r} 没有可回退的更早版本。",
            ),
            self._promote_one(task),
        )

    def remove(self, name: str) -> list[StoredAdapter]:
        """Delete one version (`task@2`) or all versions (`task`), including damaged ones.

        If the current version is deleted, the newest undamaged one left becomes current. Returns the
        deleted adapters; the record of a damaged one is empty.
        """
        task, at, _ = name.partition("@")
        self._check_known(task)
        with self._lock(task):
            self._sweep(task)
            versions = [self._resolve(name)[1]] if at else self._versions(task)
            removed = [self._read_or_blank(task, version) for version in versions]
            if self._current(task) in versions:
                self._succeed(task, versions)
            for adapter in removed:
                hidden = self._hidden(task, adapter.version)
                adapter.path.rename(hidden)  # so that an interrupted deletion leaves no version
                shutil.rmtree(hidden)
            return removed

    def verify(self, adapter: StoredAdapter) -> None:
        """Raise `CorruptFileError` if a file is missing, unreadable or has changed since it was stored."""
        config = CONFIG if _weights(adapter.path).name == WEIGHTS else MODEL_CONFIG
        read_object(adapter.path / config, adapter.name)
        expected = read_object(adapter.path / RECORD, adapter.name).get("sha256")
        weights = _weights(adapter.path)
        try:
            actual = file_sha256(weights)
        except OSError as error:
            raise damaged_file(weights, adapter.name, error.strerror or str(error)) from error
        if actual != expected:
            reason = say(
                f"SHA-256 mismatch: {actual}, expected {expected}",
                f"SHA-256 不符：为 {actual}，应为 {expected}",
            )
            raise damaged_file(weights, adapter.name, reason)

    def unlisted(self) -> dict[Path, CorruptFileError]:
        """The adapter folders that `list` leaves out, each with the error and its remedy."""
        errors = {}
        root = self.workspace.adapters
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            for version in self._versions(folder.name):
                try:
                    self._read(folder.name, version)
                except CorruptFileError as error:
                    errors[folder / str(version)] = error
            if (folder / CONFIG).is_file():
                errors[folder] = copied(folder, folder.name)
        return errors

    def _folder(self, task: str) -> Path:
        return self.workspace.adapters / task

    def _lock(self, task: str) -> AbstractContextManager[object]:
        return FileLock(self._folder(task) / ".lock")

    def _hidden(self, task: str, version: int) -> Path:
        return self._folder(task) / f".{version}.partial"

    def _sweep(self, task: str) -> None:
        """Delete what a killed process left half written or half deleted."""
        for path in self._folder(task).glob(".*.partial"):
            if path.is_dir():
                shutil.rmtree(path)

    def _versions(self, task: str) -> list[int]:
        if not _TASK_NAME.fullmatch(task) or not self._folder(task).is_dir():
            return []
        return sorted(
            int(path.name)
            for path in self._folder(task).iterdir()
            if _VERSION.fullmatch(path.name) and path.is_dir()
        )

    def _current(self, task: str) -> int | None:
        version = _number(self._folder(task) / "current")
        return version if version in self._versions(task) else None

    def _write_current(self, task: str, version: int) -> None:
        write_whole(self._folder(task) / "current", f"{version}\n")

    def _promote(self, task: str, version: int) -> None:
        current = self._current(task)
        if current not in (None, version):
            history = self._folder(task) / "history"
            earlier = [*_numbers(history), current]
            write_whole(history, "".join(f"{number}\n" for number in earlier))
        self._write_current(task, version)

    def _succeed(self, task: str, leaving: list[int]) -> None:
        """Make the newest undamaged version that is not in `leaving` the current one."""
        for version in reversed(self._versions(task)):
            if version not in leaving and self._read_or_blank(task, version).record:
                self._write_current(task, version)
                return
        (self._folder(task) / "current").unlink()

    def _check_known(self, task: str) -> None:
        if not self._versions(task):
            if task == "base":
                check_task_name(task)
            if _TASK_NAME.fullmatch(task) and (self._folder(task) / CONFIG).is_file():
                raise copied(self._folder(task), task)
            raise unknown("task", "任务", task, self.tasks())

    def _resolve(self, name: str, *, bare: bool = True) -> tuple[str, int]:
        """The task and version that `name` means; with `bare`, a task without a version is allowed."""
        task, at, number = name.partition("@")
        self._check_known(task)
        versions = self._versions(task)
        if at:
            if not _VERSION.fullmatch(number) or int(number) not in versions:
                valid = [f"{task}@{version}" for version in versions]
                raise unknown("version", "版本", name, valid)
            return task, int(number)
        if not bare:
            raise UsageError(
                say(f"{name!r} names a task but no version.", f"{name!r} 没有指明版本。"),
                self._promote_one(task),
            )
        current = self._current(task)
        if current is not None:
            return task, current
        file = self._folder(task) / "current"
        if file.exists():
            raise CorruptFileError(
                say(
                    f"{file} does not name a version of {task!r}.",
                    f"{file} 的内容不是 {task!r} 的任何版本。",
                ),
                self._promote_one(task),
            )
        if not any((self._folder(task) / str(number) / RECORD).exists() for number in versions):
            self._read(task, versions[-1])  # its error says where the folder came from
        raise UsageError(
            say(f"{task!r} has no current version.", f"{task!r} 没有当前版本。"),
            self._promote_one(task),
        )

    def _promote_one(self, task: str) -> str:
        names = ", ".join(f"{task}@{version}" for version in self._versions(task))
        return say(
            f"Name a version, or make one current with `onebase adapters promote`: {names}.",
            f"请指明一个版本，或用 `onebase adapters promote` 将其设为当前版本：{names}。",
        )

    def _read(self, task: str, version: int) -> StoredAdapter:
        path = self._folder(task) / str(version)
        record = read_object(path / RECORD, f"{task}@{version}")
        return StoredAdapter(task, version, path, version == self._current(task), record)

    def _read_or_blank(self, task: str, version: int) -> StoredAdapter:
        try:
            return self._read(task, version)
        except CorruptFileError:
            path = self._folder(task) / str(version)
            return StoredAdapter(task, version, path, version == self._current(task), {})

    # Last in the class: below it, `list` in an annotation would mean this method.
    def list(self, task: str | None = None) -> list[StoredAdapter]:
        """The undamaged versions of one task or of all, by task, oldest first."""
        adapters = [
            self._read_or_blank(name, version)
            for name in (self.tasks() if task is None else [task])
            for version in self._versions(name)
        ]
        return [adapter for adapter in adapters if adapter.record]


def _weights(folder: Path) -> Path:
    """The weights file of a version: of an adapter or of a whole model."""
    model = folder / MODEL
    return model if model.exists() else folder / WEIGHTS


def _numbers(file: Path) -> list[int]:
    """The version numbers in a small text file; anything else in it is ignored."""
    try:
        words = file.read_bytes().decode("ascii", errors="replace").split()
    except FileNotFoundError:
        return []
    return [int(word) for word in words if _VERSION.fullmatch(word)]


def _number(file: Path) -> int | None:
    return next(iter(_numbers(file)), None)
