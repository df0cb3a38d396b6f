"""The tasks that a server offers: those of its workspace, in their current state on disk.

The modification time of a task's folder changes when a version is added or removed, or when another
version becomes current, so one `stat` detects any change. It is called for each request of a task, and
for all tasks every second.
"""

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onebase.adapters.full import FULL
from onebase.adapters.onebase_json import RECORD
from onebase.adapters.store import MODEL, WEIGHTS, AdapterStore, StoredAdapter
from onebase.engine.pool import BASE_TASK
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.serving.errors import unavailable_model, unknown_model

# A folder that has just changed may change again within the resolution of its clock: it is re-read.
_SETTLED = 50_000_000  # nanoseconds
_MAX_LISTED = 50  # names in an error
_VERSION = re.compile(r"[1-9][0-9]{0,17}")

FileState = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Offer:
    """One version of a task in the workspace. `state` changes with its files. `reason` says why it is not
    available; it is None if the version is available.
    """

    adapter: StoredAdapter
    state: FileState
    reason: str | None

    @property
    def name(self) -> str:
        """`task@version`."""
        return self.adapter.name


@dataclass(frozen=True)
class _Folder:
    """A task's folder as it was read: its modification time, its valid versions and their states, and
    its damaged versions.
    """

    changed: int
    versions: dict[int, StoredAdapter]
    states: dict[int, FileState]
    damaged: tuple[int, ...]

    @property
    def current(self) -> int | None:
        """The version that the bare task name refers to."""
        return next((v for v, item in self.versions.items() if item.current), None)


class Catalog:
    """The tasks of a store: which of them are available on `base`, and why the others are not.

    Offers `tasks`, or all tasks if that is empty. Raises UsageError if one of `tasks` is not in the store
    or not available.
    """

    def __init__(
        self, store: AdapterStore, base: Base, *, allow_full: bool, tasks: Iterable[str] = ()
    ) -> None:
        self.store = store
        self._base = base
        self._allow_full = allow_full
        self._offered = set(tasks)
        self._all = not self._offered
        self._withdrawn: set[str] = set()
        self._folders: dict[str, _Folder] = {}
        self.refresh()
        for task in sorted(self._offered):
            self._require(task)

    def refresh(self) -> bool:
        """Re-read changed folders. Returns whether there were any. Thread-safe."""
        folders = {}
        for task in _task_folders(self.store.workspace.adapters):
            folder = self._read(task, self._folders.get(task))
            if folder is not None:
                folders[task] = folder
        before, self._folders = self._folders, folders
        return before != folders

    def find(self, name: str) -> Offer | None:
        """The current offer for the model `name`, `task` or `task@version`; None for the bare base.

        Raises ApiError: 404 for an unknown name, 409 for a task that is not available.
        """
        if name == BASE_TASK:
            return None
        task, _, _ = name.partition("@")
        offer = self._named(name, self._folder(task))
        if _state(offer.adapter.path) != offer.state:
            offer = self._named(name, self._folder(task, force=True))
        if offer.reason is not None:
            raise unavailable_model(name, offer.reason)
        return offer

    def _named(self, name: str, folder: _Folder | None) -> Offer:
        _, separator, number = name.partition("@")
        version = folder.current if folder and not separator else None
        if separator and _VERSION.fullmatch(number):
            version = int(number)
        if folder and version in folder.damaged:
            raise unavailable_model(name, say("its record is damaged", "其记录已损坏"))
        if folder is None or version not in folder.versions:
            raise unknown_model(name, self._valid())
        return self._offer(folder, version)

    def has(self, task: str) -> bool:
        """Whether a task has any version in the store."""
        return self._folder(task) is not None

    def offers(self) -> list[Offer]:
        """All versions of all tasks, sorted by task and version."""
        folders = sorted(self._folders.items())
        return [self._offer(f, version) for _, f in folders for version in sorted(f.versions)]

    def damaged(self) -> list[str]:
        """The versions whose record is unreadable, as `task@version`."""
        folders = sorted(self._folders.items())
        return [f"{task}@{version}" for task, f in folders for version in f.damaged]

    def offer(self, task: str) -> list[Offer]:
        """Offer a stored task with all of its versions. Raises ApiError, 404."""
        folder = self._existing_folder(task)
        self._withdrawn.discard(task)
        self._offered.add(task)
        return [self._offer(folder, version) for version in sorted(folder.versions)]

    def _require(self, task: str) -> None:
        """Raise UsageError for a task of the settings that is not available."""
        if "@" in task:
            name = task.partition("@")[0]
            raise UsageError(
                say(
                    f"{task} names a version, but a task is always offered with all of its versions.",
                    f"{task} 指定了版本，但任务总是连同所有版本一起提供。",
                ),
                say(
                    f"Use --tasks {name}; requests can then name {task}.",
                    f"请使用 --tasks {name}，然后在请求中指定 {task}。",
                ),
            )
        folder = self._folders.get(task)
        if folder is None:
            self.store.get(task)  # raises an error with the valid names
        elif folder.current is not None and (
            reason := self._reason(folder.versions[folder.current])
        ):
            raise UsageError(
                say(f"{task} can't be served: {reason}.", f"无法提供任务 {task}：{reason}。"),
                say("Remove it from --tasks.", "请从 --tasks 中去掉它。"),
            )

    def withdraw(self, task: str) -> None:
        """Stop offering a task until `offer` is called. Raises ApiError, 404."""
        self._existing_folder(task)
        self._withdrawn.add(task)

    def _existing_folder(self, task: str) -> _Folder:
        folder = self._folder(task)
        if folder is None:
            raise unknown_model(task, sorted(self._folders))
        return folder

    def _folder(self, task: str, *, force: bool = False) -> _Folder | None:
        """A task's folder in its current state. `force`: read it even if it seems unchanged."""
        folder = self._read(task, None if force else self._folders.get(task))
        if folder is not self._folders.get(task):
            others = {name: item for name, item in self._folders.items() if name != task}
            self._folders = others if folder is None else {**others, task: folder}
        return folder

    def _read(self, task: str, previous: _Folder | None) -> _Folder | None:
        path = self.store.workspace.adapters / task
        # Only listed names are looked up, and none of them contains a slash.
        if previous is None and task not in _task_folders(self.store.workspace.adapters):
            return None
        try:
            changed = path.stat().st_mtime_ns
            if previous is not None and previous.changed == changed:
                return previous
            versions = {item.version: item for item in self.store.list(task)}
            numbers = {
                int(e.name) for e in os.scandir(path) if _VERSION.fullmatch(e.name) and e.is_dir()
            }
        except OSError:
            return None
        if not numbers:
            return None
        if time.time_ns() - changed < _SETTLED:
            changed = -1
        states = {version: _state(item.path) for version, item in versions.items()}
        return _Folder(changed, versions, states, tuple(sorted(numbers - set(versions))))

    def _offer(self, folder: _Folder, version: int) -> Offer:
        adapter = folder.versions[version]
        return Offer(adapter, folder.states[version], self._reason(adapter))

    def _reason(self, adapter: StoredAdapter) -> str | None:
        """Why an adapter is not available; None if it is."""
        record = adapter.record
        if adapter.task in self._withdrawn or not (self._all or adapter.task in self._offered):
            return say(
                "it is not offered; POST /v1/adapters offers it",
                "尚未提供；可用 POST /v1/adapters 提供",
            )
        if record.get("head"):
            return say(
                "it is a reward model, which does not generate answers",
                "它是奖励模型，只打分，不生成回答",
            )
        if adapter.method == FULL:
            if self._allow_full:
                return None
            return say(
                "it is a fully fine-tuned model; start the server with --allow-full",
                "它是全量微调得到的完整模型；请在启动服务器时加上 --allow-full",
            )
        trained_on = record.get("base_fingerprint")
        if trained_on and trained_on != self._base.fingerprint:
            name = str(record.get("base", "")).rstrip("/").rpartition("/")[2]
            return say(f"it was trained on another base ({name})", f"它的训练基座是 {name}")
        return None

    def _valid(self) -> list[str]:
        """The available names, at most _MAX_LISTED."""
        names = [BASE_TASK]
        for task, folder in sorted(self._folders.items()):
            available = [v for v in sorted(folder.versions) if not self._reason(folder.versions[v])]
            if folder.current in available:
                names.append(task)
            names += [f"{task}@{version}" for version in available]
        if len(names) > _MAX_LISTED:
            more = len(names) - _MAX_LISTED
            return [*names[:_MAX_LISTED], say(f"and {more} more", f"以及另外 {more} 个")]
        return names


def _task_folders(root: Path) -> list[str]:
    try:
        return sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")
    except OSError:
        return []


def _state(folder: Path) -> FileState:
    """The times, sizes and inodes of a version's files, which change when a file is replaced."""
    states = []
    for name in (RECORD, WEIGHTS, MODEL):
        try:
            stat = (folder / name).stat()
        except OSError:
            continue
        states.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(states)
