"""What a server offers: the tasks of its workspace, as they are on disk now.

A task's folder changes its modification time when a version comes or goes or another one becomes the
current one. So one `stat` tells whether anything is new; that is asked at each request for the task,
and for all of them every second.
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

# A folder that changed just now may change again within the clock's own step: it is read again.
_SETTLED = 50_000_000  # nanoseconds
_LISTED = 50
_VERSION = re.compile(r"[1-9][0-9]{0,17}")

FileState = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Offer:
    """One version of a task as the workspace has it. `state` changes with its files. `reason` says
    why it does not answer, None where it does.
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
    """A task's folder as it was read: when it had changed, its sound versions, its damaged ones."""

    changed: int
    versions: dict[int, StoredAdapter]
    states: dict[int, FileState]
    damaged: tuple[int, ...]

    @property
    def current(self) -> int | None:
        """The version that the bare task name means."""
        return next((v for v, item in self.versions.items() if item.current), None)


class Catalog:
    """The tasks of a store, which of them answer on `base`, and why the others do not.

    `tasks` are offered, or all of them where it is empty. Raises UsageError where one of them is
    not in the store or can't answer.
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
        """Read what has changed on disk. Returns whether anything has. Callable in any thread."""
        found = {}
        for task in _task_folders(self.store.workspace.adapters):
            folder = self._read(task, self._folders.get(task))
            if folder is not None:
                found[task] = folder
        before, self._folders = self._folders, found
        return before != found

    def find(self, name: str) -> Offer | None:
        """What the model `name` means now: `task` or `task@version`; None is the bare base.

        Raises ApiError: 404 for an unknown name, 409 for what does not answer.
        """
        if name == BASE_TASK:
            return None
        task, _, _ = name.partition("@")
        offer = self._named(name, self._look_at(task))
        if _state(offer.adapter.path) != offer.state:
            offer = self._named(name, self._look_at(task, again=True))
        if offer.reason is not None:
            raise unavailable_model(name, offer.reason)
        return offer

    def _named(self, name: str, folder: _Folder | None) -> Offer:
        _, at, number = name.partition("@")
        version = folder.current if folder and not at else None
        if at and _VERSION.fullmatch(number):
            version = int(number)
        if folder and version in folder.damaged:
            raise unavailable_model(name, say("its record is damaged", "其记录已损坏"))
        if folder is None or version not in folder.versions:
            raise unknown_model(name, self._valid())
        return self._offer(folder, version)

    def knows(self, task: str) -> bool:
        """Whether a task has a version in the store."""
        return self._look_at(task) is not None

    def offers(self) -> list[Offer]:
        """Every version of every task, by task, then oldest first."""
        folders = sorted(self._folders.items())
        return [self._offer(f, version) for _, f in folders for version in sorted(f.versions)]

    def damaged(self) -> list[str]:
        """The versions whose record can't be read, as `task@version`."""
        folders = sorted(self._folders.items())
        return [f"{task}@{version}" for task, f in folders for version in f.damaged]

    def offer(self, task: str) -> list[Offer]:
        """Offer a stored task, all of its versions. Raises ApiError, 404."""
        folder = self._known(task)
        self._withdrawn.discard(task)
        self._offered.add(task)
        return [self._offer(folder, version) for version in sorted(folder.versions)]

    def _require(self, task: str) -> None:
        """Raise UsageError for a task that was named at the start and does not answer."""
        if "@" in task:
            name = task.partition("@")[0]
            raise UsageError(
                say(
                    f"{task} names a version; tasks are offered with all of their versions.",
                    f"{task} 指定了版本，而任务总是连同所有版本一起提供。",
                ),
                say(
                    f"Write --tasks {name}; a request may then ask for {task}.",
                    f"请写 --tasks {name}；请求中可指定 {task}。",
                ),
            )
        folder = self._folders.get(task)
        if folder is None:
            self.store.get(task)  # raises: it names the tasks that there are
        elif folder.current is not None and (
            reason := self._reason(folder.versions[folder.current])
        ):
            raise UsageError(
                say(f"{task} can't be served: {reason}.", f"无法提供 {task}：{reason}。"),
                say("Leave it out of --tasks.", "请从 --tasks 中去掉它。"),
            )

    def withdraw(self, task: str) -> None:
        """Answer for a task no more, until it is offered again. Raises ApiError, 404."""
        self._known(task)
        self._withdrawn.add(task)

    def _known(self, task: str) -> _Folder:
        folder = self._look_at(task)
        if folder is None:
            raise unknown_model(task, sorted(self._folders))
        return folder

    def _look_at(self, task: str, *, again: bool = False) -> _Folder | None:
        """A task's folder as it is now; `again`: read it even if it seems unchanged."""
        folder = self._read(task, None if again else self._folders.get(task))
        if folder is not self._folders.get(task):
            others = {name: item for name, item in self._folders.items() if name != task}
            self._folders = others if folder is None else {**others, task: folder}
        return folder

    def _read(self, task: str, known: _Folder | None) -> _Folder | None:
        place = self.store.workspace.adapters / task
        # The listing says which tasks there are: a name with a slash in it is never looked up.
        if known is None and task not in _task_folders(self.store.workspace.adapters):
            return None
        try:
            changed = place.stat().st_mtime_ns
            if known is not None and known.changed == changed:
                return known
            versions = {item.version: item for item in self.store.list(task)}
            there = {
                int(e.name) for e in os.scandir(place) if _VERSION.fullmatch(e.name) and e.is_dir()
            }
        except OSError:
            return None
        if not there:
            return None
        if time.time_ns() - changed < _SETTLED:
            changed = -1
        states = {version: _state(item.path) for version, item in versions.items()}
        return _Folder(changed, versions, states, tuple(sorted(there - set(versions))))

    def _offer(self, folder: _Folder, version: int) -> Offer:
        adapter = folder.versions[version]
        return Offer(adapter, folder.states[version], self._reason(adapter))

    def _reason(self, adapter: StoredAdapter) -> str | None:
        """Why an adapter does not answer here."""
        record = adapter.record
        if adapter.task in self._withdrawn or not (self._all or adapter.task in self._offered):
            return say(
                "it is not offered; POST /v1/adapters offers it",
                "尚未提供；可用 POST /v1/adapters 提供",
            )
        if record.get("head"):
            return say(
                "it is a reward model, which scores answers and gives none",
                "它是奖励模型，只打分，不生成回答",
            )
        if adapter.method == FULL:
            if self._allow_full:
                return None
            return say(
                "full fine-tuning made it a base of its own; start the server with --allow-full",
                "它由全量微调得到，自成一个基座；请用 --allow-full 启动服务",
            )
        trained_on = record.get("base_fingerprint")
        if trained_on and trained_on != self._base.fingerprint:
            name = str(record.get("base", "")).rstrip("/").rpartition("/")[2]
            return say(f"it was trained on another base ({name})", f"它训练于另一个基座（{name}）")
        return None

    def _valid(self) -> list[str]:
        """The names that answer, or the first of them."""
        names = [BASE_TASK]
        for task, folder in sorted(self._folders.items()):
            answering = [v for v in sorted(folder.versions) if not self._reason(folder.versions[v])]
            if folder.current in answering:
                names.append(task)
            names += [f"{task}@{version}" for version in answering]
        if len(names) > _LISTED:
            more = len(names) - _LISTED
            return [*names[:_LISTED], say(f"and {more} more", f"以及另外 {more} 个")]
        return names


def _task_folders(root: Path) -> list[str]:
    try:
        return sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name[0] != ".")
    except OSError:
        return []


def _state(folder: Path) -> FileState:
    """What changes when a version's files are replaced."""
    states = []
    for name in (RECORD, WEIGHTS, MODEL):
        try:
            stat = (folder / name).stat()
        except OSError:
            continue
        states.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(states)
