"""The adapters at hand in a running engine, each compiled once when it is loaded."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import NOTHING, Contribution
from onebase.adapters.full import FULL
from onebase.adapters.peft_format import load_adapter
from onebase.adapters.store import StoredAdapter
from onebase.data.template import Template
from onebase.data.virtual_tokens import without_marks
from onebase.engine.prompt_kv import Compiler, with_prompt_kv
from onebase.errors import UsageError, unknown
from onebase.language import say
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
    own_base_bytes: int = 0

    @property
    def bytes(self) -> int:
        """The memory that its adapter takes, or its own base."""
        return self.contribution.bytes + self.own_base_bytes


class AdapterPool(Mapping[str, LoadedTask]):
    """Loaded tasks by name. Each has a base; where none is named, it is that of the task `base`, the
    bare base.

    `compiler_of` gives what runs a base. It is used, and the tasks are changed, while `turn` is held;
    `removed` is then told of a task that no name answers to any more.
    """

    def __init__(
        self,
        compiler_of: Callable[[Base], Compiler],
        turn: AbstractContextManager[None],
        removed: Callable[[LoadedTask], None],
    ) -> None:
        self._compiler_of = compiler_of
        self._turn = turn
        self._removed = removed
        self._tasks: dict[str, LoadedTask] = {}
        self._held: set[LoadedTask] = set()

    @property
    def base(self) -> Base:
        """What the name `base` answers on. Raises UsageError where there is none."""
        return self[BASE_TASK].base

    def load_stored(
        self, adapter: StoredAdapter, name: str, base: Base | None = None
    ) -> LoadedTask:
        """Make a stored adapter answer to `name` on `base`, replacing what did. A task of full
        fine-tuning is a base itself: `base` may be that one, already loaded.
        """
        record = adapter.record
        require_answers(adapter)
        settings = record.get("template") or {}
        labels = tuple(record.get("labels") or ())
        if adapter.method == FULL:
            own = self._model_of(adapter, base)
            template = Template.from_config(own.tokenizer, settings)
            return self.load_full(name, own, template, version=adapter.version, labels=labels)
        base = base or self.base
        _require_trained_on(adapter, base)
        return self.load(
            name,
            load_adapter(adapter.path, base),
            Template.from_config(base.tokenizer, settings),
            version=adapter.version,
            labels=labels,
            folder=adapter.path,
            base=base,
        )

    def _model_of(self, adapter: StoredAdapter, base: Base | None) -> Base:
        """The model that a full fine-tuned task is: `base` or the engine's own, if it is that one."""
        bare = self._tasks.get(BASE_TASK)
        known = base or (None if bare is None else bare.base)
        if known is not None and known.path == adapter.path:
            return known
        device = None if known is None else str(known.device)
        return Base.load(str(adapter.path), device=device)

    def load(
        self,
        name: str,
        adapter: Adapter,
        template: Template,
        *,
        version: int = 0,
        labels: tuple[str, ...] = (),
        folder: Path | None = None,
        base: Base | None = None,
    ) -> LoadedTask:
        """Compile `adapter`, saved in `folder` if anywhere, and make it answer to `name` on `base`,
        replacing what did.
        """
        base = base or self.base
        with torch.no_grad():
            found = _hash(adapter.eval().contribution().digest(), template)
        compiler = self._compiler_of(base)
        with self._turn:
            contribution = with_prompt_kv(compiler, adapter, folder)
        task = LoadedTask(_task_of(name), version, template, contribution, base, labels, found)
        return self._put(name, task)

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
        found = _hash(base.fingerprint, template)
        bare = self._tasks.get(BASE_TASK)
        size = 0 if bare is not None and base is bare.base else base.bytes
        task = LoadedTask(_task_of(name), version, template, NOTHING, base, labels, found, size)
        return self._put(name, task)

    def load_bare(
        self, name: str, instruction: str | None = None, base: Base | None = None
    ) -> LoadedTask:
        """Make `name` the bare base, with an instruction."""
        base = base or self.base
        self._compiler_of(base)  # refused here where nothing can run it
        text = None if instruction is None else without_marks(instruction)
        template = Template(base.tokenizer, instruction=text)
        return self._put(name, LoadedTask(name, 0, template, NOTHING, base))

    def unload(self, name: str) -> None:
        """Forget a task. Raises UsageError when it is not loaded or is the base."""
        with self._turn:
            if name == BASE_TASK or name not in self._tasks:
                others = [task for task in self._tasks if task != BASE_TASK]
                raise unknown("task", "任务", name, others)
            self._take_away(name)

    def _put(self, name: str, task: LoadedTask) -> LoadedTask:
        with self._turn:
            before = self._tasks.get(name)
            self._tasks[name] = task  # the name answers all the while
            self._held.add(task)
            if before is not None:
                self._held.remove(before)
                self._removed(before)
        return task

    def _take_away(self, name: str) -> None:
        task = self._tasks.pop(name)
        self._held.remove(task)
        self._removed(task)

    def __getitem__(self, name: str) -> LoadedTask:
        task = self._tasks.get(name)
        if task is None:
            if name == BASE_TASK:
                raise _no_base()
            raise unknown("task", "任务", name, list(self._tasks))
        return task

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def holds(self, task: LoadedTask) -> bool:
        """Whether a name answers with this very task."""
        return task in self._held

    def contributions(self) -> dict[str, Contribution]:
        """What each loaded task contributes, by name."""
        return {name: task.contribution for name, task in self._tasks.items()}


def _no_base() -> UsageError:
    return UsageError(
        say("This engine was given no base.", "该引擎没有基座。"),
        say("Make it with one: Engine(base).", "请在创建时给出：Engine(base)。"),
    )


def _require_trained_on(adapter: StoredAdapter, base: Base) -> None:
    """Raise UsageError for an adapter of another base."""
    trained_on = adapter.record.get("base_fingerprint")
    if not trained_on or trained_on == base.fingerprint:
        return
    if adapter.base == base.name:
        raise UsageError(
            say(
                f"{adapter.name} was trained on other weights of {base.name} than these.",
                f"训练 {adapter.name} 时，{base.name} 的权重与现在不同。",
            ),
            say(
                "Put the old ones back, name the right base with --base, or train the task again.",
                "请恢复原来的权重，用 --base 指明正确的基座，或重新训练该任务。",
            ),
        )
    raise UsageError(
        say(
            f"{adapter.name} was trained on {adapter.base}, not on {base.name}.",
            f"{adapter.name} 是在 {adapter.base} 上训练的，而不是 {base.name}。",
        ),
        say(
            f"Load it with --base {quote(adapter.base)}, or train the task on this base.",
            f"请用 --base {quote(adapter.base)} 加载，或在该基座上重新训练。",
        ),
    )


def require_answers(adapter: StoredAdapter) -> None:
    """Raise UsageError for a reward model."""
    if adapter.record.get("head"):
        raise UsageError(
            say(
                f"{adapter.name} is a reward model: it scores answers and gives none.",
                f"{adapter.name} 是奖励模型：它为回答打分，不生成回答。",
            ),
            say(
                f"Score answers with: onebase align score --task {adapter.task} --file ANSWERS.jsonl",
                f"请用它打分：onebase align score --task {adapter.task} --file 回答.jsonl",
            ),
        )


def _task_of(name: str) -> str:
    return name.split("@", maxsplit=1)[0]


def _hash(content: str, template: Template) -> str:
    settings = json.dumps(template.config(), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(f"{content} {settings}".encode()).hexdigest()[:16]
