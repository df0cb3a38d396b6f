"""Which base, in which precision, a stored task answers on, and which one the name `base` means."""

from collections.abc import Sequence
from dataclasses import dataclass

from onebase.adapters.full import FULL
from onebase.adapters.store import StoredAdapter
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE, lasting_name

AUTO = "auto"  # the precision that load_for_answering chooses


@dataclass(frozen=True)
class BaseChoice:
    """A base by its name, and the precision to load it in; None is the default of Base.load."""

    name: str
    precision: str | None


@dataclass(frozen=True)
class BaseOptions:
    """The base and the precision that a user chose. Without a choice, each task answers on the base
    that it was trained on, in the same quantization.
    """

    base: str | None = None
    precision: str | None = None

    def of_task(self, adapter: StoredAdapter) -> BaseChoice:
        """The base of a stored task. A task of full fine-tuning is a base itself."""
        if adapter.method == FULL:
            return BaseChoice(str(adapter.path), self.precision)
        return BaseChoice(self.base or trained_on(adapter), self._precision([adapter]))

    def of_base(self, tasks: Sequence[StoredAdapter]) -> BaseChoice:
        """The base that the name `base` means when `tasks` are loaded: the one that all of them were
        trained on, in the same quantization.

        Raises UsageError if they were trained on several.
        """
        # The same weights may be recorded under several names.
        by_weights = {
            item.record.get("base_fingerprint") or trained_on(item): item for item in tasks
        }
        names = list(dict.fromkeys(trained_on(adapter) for adapter in by_weights.values()))
        if self.base is None and len(names) > 1:
            listed = ", ".join(names)
            raise UsageError(
                say(
                    f"'base' could be any of {listed}: the tasks were trained on different bases.",
                    f"无法确定“base”指 {listed} 中的哪一个：这些任务是在不同的基座上训练的。",
                ),
                say("Name it with --base.", "请用 --base 指定。"),
            )
        return BaseChoice(self.base or next(iter(names), DEFAULT_BASE), self._precision(tasks))

    def _precision(self, adapters: Sequence[StoredAdapter]) -> str | None:
        """The precision of the base of these adapters: the user's choice, else the quantization that
        all of them were trained in, else the default.
        """
        quantizations = {training_precision(adapter) for adapter in adapters}
        if self.precision in (None, AUTO) and len(quantizations) == 1:
            return quantizations.pop() or self.precision
        return self.precision


def trained_on(adapter: StoredAdapter) -> str:
    """The name of the base that an adapter was trained on."""
    return lasting_name(adapter.base or DEFAULT_BASE)


def training_precision(adapter: StoredAdapter) -> str | None:
    """The quantization of the base during an adapter's training; None if it was floating point."""
    text = str(adapter.record.get("precision") or "")
    return text if text.startswith(("int8", "nf4")) else None
