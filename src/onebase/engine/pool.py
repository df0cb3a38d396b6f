"""The tasks that are loaded in a running engine. A task's prompt KV is computed once, at load."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from onebase.adapters.adapter import Adapter
from onebase.adapters.base_match import require_trained_on
from onebase.adapters.contribution import NOTHING, Contribution
from onebase.adapters.full import FULL
from onebase.adapters.peft_format import load_adapter
from onebase.adapters.store import StoredAdapter
from onebase.data.template import Template
from onebase.data.virtual_tokens import without_marks
from onebase.engine.prompt_kv import PromptKVRunner, with_prompt_kv
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.model.base import Base

BASE_TASK = "base"


@dataclass(frozen=True, eq=False)
class LoadedTask:
    """One task in memory: its prompt template and its adapter's contribution.

    `contribution` has no leading virtual tokens: they have become part of the KV prefix. `labels`
    are the classes of a classification task. `base` is the engine's base, or the task's own model
    after full fine-tuning; `own_base_bytes` is the size of the latter. `hash` identifies the
    content: two loads of one adapter are two tasks with the same hash. It is empty for the bare base.
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
        """The memory of the task's adapter, or of its own base."""
        return self.contribution.bytes + self.own_base_bytes


class AdapterPool(Mapping[str, LoadedTask]):
    """Loaded tasks by name. A task that is loaded without a base uses that of the task `base`, the
    bare base.

    `runner_of` returns the runner of a base. Prompt KV is computed, and tasks are changed, while
    `lock` is held. `on_removed` is called, with the lock held, for a task that no longer has a name.
    """

    def __init__(
        self,
        runner_of: Callable[[Base], PromptKVRunner],
        lock: AbstractContextManager[None],
        on_removed: Callable[[LoadedTask], None],
    ) -> None:
        self._runner_of = runner_of
        self._lock = lock
        self._on_removed = on_removed
        self._tasks: dict[str, LoadedTask] = {}
        self._loaded: set[LoadedTask] = set()

    @property
    def base(self) -> Base:
        """The base of the task `base`. Raises UsageError if there is none."""
        return self[BASE_TASK].base

    def load_stored(
        self, adapter: StoredAdapter, name: str, base: Base | None = None
    ) -> LoadedTask:
        """Load a stored adapter as the task `name` on `base`, replacing a task of that name. A task of
        full fine-tuning is a base itself: `base` may be that model, already loaded.
        """
        record = adapter.record
        refuse_reward_model(adapter)
        settings = record.get("template") or {}
        labels = tuple(record.get("labels") or ())
        if adapter.method == FULL:
            model = self._model_of(adapter, base)
            template = Template.from_config(model.tokenizer, settings)
            return self.load_full(name, model, template, version=adapter.version, labels=labels)
        base = base or self.base
        require_trained_on(adapter, base)
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
        """The model of a fully fine-tuned task: `base`, or the engine's base, if it is the same one;
        else loaded.
        """
        bare_task = self._tasks.get(BASE_TASK)
        loaded = base or (None if bare_task is None else bare_task.base)
        if loaded is not None and loaded.path == adapter.path:
            return loaded
        device = None if loaded is None else str(loaded.device)
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
        """Load `adapter` as the task `name` on `base`, replacing a task of that name. `folder` is where
        the adapter is saved, if it is; its prompt KV is cached there.
        """
        base = base or self.base
        content_hash = _hash(adapter.contribution_in_evaluation().digest(), template)
        runner = self._runner_of(base)
        with self._lock:
            contribution = with_prompt_kv(runner, adapter, folder)
        task = LoadedTask(
            _task_of(name), version, template, contribution, base, labels, content_hash
        )
        return self._set(name, task)

    def load_full(
        self,
        name: str,
        base: Base,
        template: Template,
        *,
        version: int = 0,
        labels: tuple[str, ...] = (),
    ) -> LoadedTask:
        """Load the task `name` with a base of its own."""
        content_hash = _hash(base.fingerprint, template)
        bare_task = self._tasks.get(BASE_TASK)
        own_bytes = 0 if bare_task is not None and base is bare_task.base else base.bytes
        task = LoadedTask(
            _task_of(name), version, template, NOTHING, base, labels, content_hash, own_bytes
        )
        return self._set(name, task)

    def load_bare(
        self, name: str, instruction: str | None = None, base: Base | None = None
    ) -> LoadedTask:
        """Load the bare base as the task `name`, with an instruction."""
        base = base or self.base
        self._runner_of(base)  # raises if no runner can run this base
        plain = None if instruction is None else without_marks(instruction)
        template = Template(base.tokenizer, instruction=plain)
        return self._set(name, LoadedTask(name, 0, template, NOTHING, base))

    def unload(self, name: str) -> None:
        """Unload a task. Raises UsageError if it is not loaded or is the base."""
        with self._lock:
            if name == BASE_TASK or name not in self._tasks:
                others = [task for task in self._tasks if task != BASE_TASK]
                raise unknown("task", "任务", name, others)
            self._remove(name)

    def _set(self, name: str, task: LoadedTask) -> LoadedTask:
        with self._lock:
            replaced = self._tasks.get(name)
            self._tasks[name] = task  # never without a task under this name
            self._loaded.add(task)
            if replaced is not None:
                self._loaded.remove(replaced)
                self._on_removed(replaced)
        return task

    def _remove(self, name: str) -> None:
        task = self._tasks.pop(name)
        self._loaded.remove(task)
        self._on_removed(task)

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
        """Whether this object is loaded under any name."""
        return task in self._loaded


def _no_base() -> UsageError:
    return UsageError(
        say("This engine has no base.", "该引擎没有基座。"),
        say("Create it with one: Engine(base).", "请在创建引擎时指定基座：Engine(base)。"),
    )


def refuse_reward_model(adapter: StoredAdapter) -> None:
    """Raise UsageError for a reward model."""
    if adapter.record.get("head"):
        raise UsageError(
            say(
                f"{adapter.name} is a reward model: it scores answers, it does not generate any.",
                f"{adapter.name} 是奖励模型，只给回答打分，不生成回答。",
            ),
            say(
                f"Score answers with: onebase align score --task {adapter.task} --file ANSWERS.jsonl",
                f"可以用它打分：onebase align score --task {adapter.task} --file 回答.jsonl",
            ),
        )


def _task_of(name: str) -> str:
    return name.split("@", maxsplit=1)[0]


def _hash(content: str, template: Template) -> str:
    settings = json.dumps(template.config(), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(f"{content} {settings}".encode()).hexdigest()[:16]
