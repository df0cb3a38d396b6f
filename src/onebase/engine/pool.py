"""The adapters at hand in a running engine, each compiled once when it is loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import NOTHING, Contribution
from onebase.data.places import without_marks
from onebase.data.template import Template
from onebase.engine.compiled import compiled
from onebase.errors import unknown
from onebase.model.base import Base

BASE_TASK = "base"


@dataclass(frozen=True, eq=False)
class LoadedTask:
    """One task in memory: how its prompts are written and what its adapter contributes.

    `contribution` has no virtual tokens any more: they are part of the KV prefix. `labels` are
    the classes of a classification task. `base` is what it answers on: the engine's own, or the
    task's own where full fine-tuning made it one. `hash` tells its content from any other's; empty
    for the bare base. Two loads of one adapter are two tasks with the same hash.
    """

    task: str
    version: int
    template: Template
    contribution: Contribution
    base: Base
    labels: tuple[str, ...] = ()
    hash: str = ""


class AdapterPool(Mapping[str, LoadedTask]):
    """Loaded tasks by name; `base` is the bare base and always there."""

    def __init__(self, base: Base) -> None:
        self._base = base
        bare = LoadedTask(BASE_TASK, 0, Template(base.tokenizer), NOTHING, base)
        self._tasks: dict[str, LoadedTask] = {BASE_TASK: bare}

    def load(
        self,
        name: str,
        adapter: Adapter,
        template: Template,
        *,
        version: int = 0,
        labels: tuple[str, ...] = (),
        folder: Path | None = None,
    ) -> LoadedTask:
        """Compile `adapter`, saved in `folder` if anywhere, and make it answer to `name`,
        replacing what did.
        """
        task = name.split("@", maxsplit=1)[0]
        contribution = compiled(self._base, adapter, folder)
        self._tasks[name] = LoadedTask(task, version, template, contribution, self._base, labels)
        return self._tasks[name]

    def load_full(
        self,
        name: str,
        base: Base,
        template: Template,
        *,
        version: int = 0,
        labels: tuple[str, ...] = (),
    ) -> LoadedTask:
        """Make `name` answer from a base of its own."""
        task = name.split("@", maxsplit=1)[0]
        self._tasks[name] = LoadedTask(task, version, template, NOTHING, base, labels)
        return self._tasks[name]

    def load_bare(self, name: str, instruction: str | None) -> LoadedTask:
        """Make `name` the bare base with an instruction."""
        text = None if instruction is None else without_marks(instruction)
        template = Template(self._base.tokenizer, instruction=text)
        self._tasks[name] = LoadedTask(name, 0, template, NOTHING, self._base)
        return self._tasks[name]

    def unload(self, name: str) -> None:
        """Forget a task. Raises UsageError when it is not loaded or is the base."""
        if name == BASE_TASK or name not in self._tasks:
            raise unknown("task", "任务", name, [task for task in self._tasks if task != BASE_TASK])
        del self._tasks[name]

    def __getitem__(self, name: str) -> LoadedTask:
        if name not in self._tasks:
            raise unknown("task", "任务", name, self._tasks)
        return self._tasks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def contributions(self) -> dict[str, Contribution]:
        """What each loaded task contributes, by name."""
        return {name: task.contribution for name, task in self._tasks.items()}
