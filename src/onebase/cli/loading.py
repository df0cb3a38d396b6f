"""Loading the tasks of a command, each on its own base."""

from collections.abc import Sequence

from onebase.adapters.store import StoredAdapter
from onebase.cli.session import Session, note
from onebase.engine.engine import Engine
from onebase.engine.pool import BASE_TASK, refuse_reward_model
from onebase.engine.task_bases import AUTO, BaseChoice, BaseOptions
from onebase.errors import MissingBaseError, UsageError, unknown
from onebase.language import say
from onebase.model.base import Base


class TaskLoader:
    """Loads tasks into one engine on request, each on the base that BaseOptions chooses. A base is loaded
    once.
    """

    def __init__(
        self, session: Session, tasks: Sequence[str], base: str | None, precision: str | None
    ) -> None:
        self.engine = Engine()
        self._store = session.store
        self._options = BaseOptions(base, precision)
        self._bases: dict[BaseChoice, Base] = {}
        self._first_tasks = [
            self._stored(name) for name in dict.fromkeys(tasks) if name != BASE_TASK
        ]
        self.load(tasks)

    def load(self, tasks: Sequence[str]) -> None:
        """Load the tasks that the engine does not have yet. The task `base` uses the base of the tasks
        that were loaded first.

        An unknown or damaged task is refused before a base is loaded.
        """
        missing = [name for name in dict.fromkeys(tasks) if name not in self.engine.tasks]
        stored = {name: self._stored(name) for name in missing if name != BASE_TASK}
        choices = {name: self._options.of_task(adapter) for name, adapter in stored.items()}
        if BASE_TASK in missing:
            choices[BASE_TASK] = self._options.of_base(self._first_tasks)
        for adapter in stored.values():
            refuse_reward_model(adapter)
            self._store.verify(adapter)
        for name in missing:
            base = self._base(choices[name], stored.get(name))
            if name == BASE_TASK:
                self.engine.tasks.load_bare(name, base=base)
            else:
                self.engine.load(stored[name], name=name, base=base)
        if len({task.base for task in self.engine.tasks.values()}) > 1:
            for name in missing:
                base = self.engine.tasks[name].base
                note(
                    say(
                        f"{name} answers on {base.name} in {base.precision}.",
                        f"{name} 使用基座 {base.name}，精度 {base.precision}。",
                    )
                )

    def _stored(self, name: str) -> StoredAdapter:
        try:
            return self._store.get(name)
        except UsageError:
            tasks = self._store.tasks()
            if name.partition("@")[0] in tasks:
                raise
            raise unknown("task", "任务", name, [*tasks, BASE_TASK]) from None

    def _base(self, choice: BaseChoice, adapter: StoredAdapter | None) -> Base:
        if choice not in self._bases:
            try:
                self._bases[choice] = load_base_for_answering(choice.name, choice.precision)
            except MissingBaseError as error:
                if adapter is None or self._options.base is not None:
                    raise
                raise MissingBaseError(
                    say(
                        f"{adapter.name} belongs to the base {choice.name}, which was not found: "
                        f"{error.message}",
                        f"{adapter.name} 属于基座 {choice.name}，但找不到该基座：{error.message}",
                    ),
                    say(
                        "Restore it, or name its new location with --base. ",
                        "请恢复该基座，或用 --base 指明其新位置。",
                    )
                    + error.remedy,
                ) from error
            if self._options.precision == AUTO != choice.precision:
                _note_precision(self._bases[choice])
        return self._bases[choice]


def load_base_for_answering(name: str, precision: str | None) -> Base:
    """Load a base to answer with. For `auto`, print the chosen precision and its loss of quality."""
    # Late: it imports numba, which not every command needs.
    from onebase.engine.lean.quality import load_for_answering

    base, quality = load_for_answering(name, precision)
    if quality is not None:
        note(
            say(
                f"Precision w8a8: on sample texts, its loss differs from that of fp32 by "
                f"{quality.loss:+.3f} nats per token, with a KL divergence of {quality.divergence:.4f}. "
                "Use --precision fp32 for exact results.",
                f"精度 w8a8：在样本文本上，损失与 fp32 相差 {quality.loss:+.3f} 纳特/词元，"
                f"KL 散度为 {quality.divergence:.4f}。需要精确结果时请用 --precision fp32。",
            )
        )
    elif precision == AUTO:
        _note_precision(base)
    return base


def _note_precision(base: Base) -> None:
    note(say(f"Precision {base.precision}.", f"精度 {base.precision}。"))
