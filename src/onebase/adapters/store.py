"""The store of adapters: numbered versions of each task, one of them the current one.

On disk, `adapters/<task>/` holds a folder for each version and three small text files:
`current` (a version), `history` (the versions that were current before, oldest first) and
`last` (the highest version ever given, so that none is given twice).
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

from onebase.adapters.record import CONFIG, MODEL_CONFIG, RECORD, copied, damaged_file, read_object
from onebase.adapters.workspace import Workspace, write_whole
from onebase.errors import CorruptFileError, UsageError, unknown
from onebase.language import say
from onebase.model.fetch import file_sha256

WEIGHTS = "adapter_model.safetensors"
MODEL = "model.safetensors"  # in place of the two, with its config.json, of full fine-tuning

_TASK_NAME = re.compile(r"[\w-][\w.-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class StoredAdapter:
    """One version of a task's adapter; `record` is what its onebase.json says."""

    task: str
    version: int
    path: Path
    current: bool
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """As users name it: `task@version`."""
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
        """When it was stored: ISO 8601, UTC."""
        return str(self.record.get("created", ""))

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured of it."""
        found = self.record.get("metrics")
        return dict(found) if isinstance(found, dict) else {}

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())


def check_task_name(name: str) -> None:
    """Raise `UsageError` unless `name` can be a task's."""
    if name == "base":
        raise UsageError(
            say("'base' can't be a task's name.", "'base' 不能用作任务名。"),
            say(
                "It stands for the base model without an adapter: choose another name.",
                "它指不带适配器的基座模型，请换一个名称。",
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
    """The adapters of one workspace. Safe with other processes at work on the same folder."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def tasks(self) -> list[str]:
        """The tasks that have a version, by name."""
        root = self.workspace.adapters
        if not root.is_dir():
            return []
        return sorted(folder.name for folder in root.iterdir() if self._versions(folder.name))

    def get(self, name: str) -> StoredAdapter:
        """The adapter that `task` (its current version) or `task@3` names.

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
        """Store what `write` puts into the folder it is given, as the task's next version.

        `write` makes adapter_config.json and adapter_model.safetensors; `record` goes into
        onebase.json. An interruption at any moment leaves no version.
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
        """Make the version that `task@2` names the task's current one."""
        task, _ = self._resolve(name, bare=False)
        with self._lock(task):
            version = self._resolve(name, bare=False)[1]  # it may have gone in the meantime
            self._read(task, version)  # a damaged version is not promoted
            self._promote(task, version)
            return self._read(task, version)

    def rollback(self, task: str) -> StoredAdapter:
        """Make the version current that was so before; again, the one before that."""
        self._check_known(task)
        with self._lock(task):
            history = self._folder(task) / "history"
            current, versions = self._current(task), self._versions(task)
            earlier = _numbers(history)
            while earlier:
                version = earlier.pop()
                if version != current and version in versions:
                    self._read(task, version)  # a damaged version is not promoted
                    # `current` first: a repeat of it at the end of `history` does no harm.
                    self._write_current(task, version)
                    write_whole(history, "".join(f"{number}\n" for number in earlier))
                    return self._read(task, version)
        raise UsageError(
            say(
                f"No version of {task!r} was current before this one.",
                f"{task!r} 在当前版本之前没有其他版本被启用过。",
            ),
            self._promote_one(task),
        )

    def remove(self, name: str) -> list[StoredAdapter]:
        """Delete one version (`task@2`) or all of them (`task`), damaged ones too.

        Where the current version goes, the newest sound one that is left takes its place.
        Returns what was there; the record of a damaged version is empty.
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
                adapter.path.rename(hidden)  # gone at once, whatever interrupts the deletion
                shutil.rmtree(hidden)
            return removed

    def verify(self, adapter: StoredAdapter) -> None:
        """Raise `CorruptFileError` where a file is missing, unreadable or not what was stored."""
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
                f"its SHA-256 is {actual}, not {expected}",
                f"其 SHA-256 为 {actual}，而应为 {expected}",
            )
            raise damaged_file(weights, adapter.name, reason)

    def unlisted(self) -> dict[Path, CorruptFileError]:
        """The folders of adapters that `list` leaves out, each with what is wrong and the way out."""
        found = {}
        root = self.workspace.adapters
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            for version in self._versions(folder.name):
                try:
                    self._read(folder.name, version)
                except CorruptFileError as error:
                    found[folder / str(version)] = error
            if (folder / CONFIG).is_file():
                found[folder] = copied(folder, folder.name)
        return found

    def _folder(self, task: str) -> Path:
        return self.workspace.adapters / task

    def _lock(self, task: str) -> AbstractContextManager[object]:
        return FileLock(self._folder(task) / ".lock")

    def _hidden(self, task: str, version: int) -> Path:
        return self._folder(task) / f".{version}.partial"

    def _sweep(self, task: str) -> None:
        """Clear away what a killed process left half written or half deleted."""
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
        """Make the newest sound version that is not `leaving` the current one."""
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
        """The task and the version that `name` means; `bare`: a task alone will do."""
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
                say(f"{name!r} names no version.", f"{name!r} 没有指明版本。"),
                self._promote_one(task),
            )
        current = self._current(task)
        if current is not None:
            return task, current
        file = self._folder(task) / "current"
        if file.exists():
            raise CorruptFileError(
                say(
                    f"{file} names no version of {task!r}.",
                    f"{file} 没有指向 {task!r} 的任何版本。",
                ),
                self._promote_one(task),
            )
        if not any((self._folder(task) / str(number) / RECORD).exists() for number in versions):
            self._read(task, versions[-1])  # which says where it came from
        raise UsageError(
            say(f"No version of {task!r} is current.", f"{task!r} 没有启用任何版本。"),
            self._promote_one(task),
        )

    def _promote_one(self, task: str) -> str:
        names = ", ".join(f"{task}@{version}" for version in self._versions(task))
        return say(
            f"Name one: {names} (`onebase adapters promote` makes it the current one).",
            f"请指明一个版本：{names}（用 `onebase adapters promote` 将其设为当前版本）。",
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
        """The versions of one task or of all, by task, then oldest first; no damaged ones."""
        adapters = [
            self._read_or_blank(name, version)
            for name in (self.tasks() if task is None else [task])
            for version in self._versions(name)
        ]
        return [adapter for adapter in adapters if adapter.record]


def _weights(folder: Path) -> Path:
    """The file of a version's weights: an adapter's, or a whole model's."""
    model = folder / MODEL
    return model if model.exists() else folder / WEIGHTS


def _numbers(file: Path) -> list[int]:
    """The versions written in a small text file, passing over what is none."""
    try:
        words = file.read_bytes().decode("ascii", errors="replace").split()
    except FileNotFoundError:
        return []
    return [int(word) for word in words if _VERSION.fullmatch(word)]


def _number(file: Path) -> int | None:
    return next(iter(_numbers(file)), None)
