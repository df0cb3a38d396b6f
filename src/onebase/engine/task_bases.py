"""Which base a stored task answers on, in which precision, and which base `base` is beside it."""

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
    """A base by its name, and the precision to hold it in: None is the default of Base.load."""

    name: str
    precision: str | None


@dataclass(frozen=True)
class BaseOptions:
    """The base and the precision that a user named. Where they named none, each task answers on the
    base that it was trained on, quantized as that was.
    """

    base: str | None = None
    precision: str | None = None

    def of_task(self, adapter: StoredAdapter) -> BaseChoice:
        """What a stored task answers on. Full fine-tuning made it a base itself."""
        if adapter.method == FULL:
            return BaseChoice(str(adapter.path), self.precision)
        return BaseChoice(self.base or trained_on(adapter), self._held([adapter]))

    def of_base(self, beside: Sequence[StoredAdapter]) -> BaseChoice:
        """What `base` is beside some tasks: what all of them were trained on, and quantized so.

        Raises UsageError where they have several.
        """
        # The same weights may be recorded under several names.
        same = {item.record.get("base_fingerprint") or trained_on(item): item for item in beside}
        names = list(dict.fromkeys(trained_on(adapter) for adapter in same.values()))
        if self.base is None and len(names) > 1:
            listed = ", ".join(names)
            raise UsageError(
                say(
                    f"'base' could be any of {listed}: the tasks were trained on different bases.",
                    f"“base” 可能是 {listed} 中的任何一个：这些任务训练于不同的基座。",
                ),
                say("Name it with --base.", "请用 --base 指明。"),
            )
        return BaseChoice(self.base or next(iter(names), DEFAULT_BASE), self._held(beside))

    def _held(self, adapters: Sequence[StoredAdapter]) -> str | None:
        """The precision of a base under these adapters: the one that was named, or else the lossy one
        that all of them were trained over, or else the default.
        """
        lossy = {trained_over(adapter) for adapter in adapters}
        if self.precision in (None, AUTO) and len(lossy) == 1:
            return lossy.pop() or self.precision
        return self.precision


def trained_on(adapter: StoredAdapter) -> str:
    """The name of the base that an adapter was trained on."""
    return lasting_name(adapter.base or DEFAULT_BASE)


def trained_over(adapter: StoredAdapter) -> str | None:
    """The lossy precision that an adapter's base was held in; None where it was floating point."""
    text = str(adapter.record.get("precision") or "")
    return text if text.startswith(("int8", "nf4")) else None
