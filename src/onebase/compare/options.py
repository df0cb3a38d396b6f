"""What a comparison is asked for: which methods, with which settings, how often, and by which metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onebase.adapters.methods import METHODS, canonical_method, parts_of
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.training.options import TrainOptions

ALL_METHODS = tuple(METHODS)
# The rows are the same for all methods, and so are the options that decide them.
_OF_THE_ROWS = ("max_tokens", "held_out")


@dataclass(frozen=True)
class CompareOptions:
    """`methods` are trained `seeds` times each, from the job's seed on. Without a file of held-out rows,
    `share` of the inputs is held out. `examples` rows stand in the prompt of `base+examples` (None: one
    for each label, 4 at least and 8 at most). `metric` decides (None: accuracy, or the loss of
    answers), `user_metric` is `module:function`. Answers have up to `answer_tokens`. With `alone`, the
    first seed of each method is trained in a process of its own, which measures its memory and time.
    `tune` gives each method a race of so many tokens for its settings.
    """

    methods: tuple[str, ...] = ALL_METHODS
    seeds: int = 3
    share: float = 0.3
    examples: int | None = None
    metric: str | None = None
    user_metric: str | None = None
    answer_tokens: int = 64
    alone: bool = True
    tune: int | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise _not_valid("seeds", self.seeds, say("at least 1", "至少为 1"))
        if not 0 < self.share < 1:
            raise _not_valid("share", self.share, say("between 0 and 1", "大于 0 且小于 1"))
        if self.tune is not None and self.tune < 1:
            raise _not_valid("tune", self.tune, say("at least 1", "至少为 1"))
        if self.answer_tokens < 1:
            raise _not_valid("answer_tokens", self.answer_tokens, say("at least 1", "至少为 1"))
        if self.examples is not None and self.examples < 1:
            raise _not_valid("examples", self.examples, say("at least 1", "至少为 1"))


def methods_named(names: Sequence[str]) -> tuple[str, ...]:
    """The methods of a list, without aliases, each once; `all` is every method. Raises UsageError."""
    methods: list[str] = []
    for name in filter(None, map(str.strip, names)):
        methods += ALL_METHODS if name == "all" else [canonical_method(name)]
    if not methods:
        raise UsageError(
            say("No method is named.", "没有指定方法。"),
            say(
                "Name methods separated by commas, or all.", "请列出以逗号分隔的方法，或使用 all。"
            ),
        )
    return tuple(dict.fromkeys(methods))


def settings_for(method: str, given: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """The settings of one method among those `given` for all `methods`.

    A key goes to every method that has such an option, an option of training to all of them;
    `lora.rank` and `lora.epochs` go to the methods with lora in them, before `rank` and `epochs`. Raises
    UsageError for a key that none of the methods has, and for one of the rows' options with a method.
    """
    known = {name for other in methods for name in parts_of(other)}
    chosen: dict[str, Any] = {}
    for key in sorted(given, key=lambda key: "." in key):
        value = given[key]
        prefix, dot, name = key.rpartition(".")
        if dot and name in _OF_THE_ROWS:
            raise UsageError(
                say(
                    f"{key}: all methods are compared on the same rows.",
                    f"{key}：所有方法在相同的数据上对比。",
                ),
                say(f"Set {name} for all of them.", f"请为所有方法统一设置 {name}。"),
            )
        if dot and canonical_method(prefix) not in known:
            raise unknown("method in a setting", "设置项中的方法", key, sorted(known))
        owners = {canonical_method(prefix)} if dot else known
        if not any(_has(owner, name) for owner in owners):
            fields = [field for owner in sorted(owners) for field in _options_of(owner)]
            raise unknown("setting", "设置项", key, list(dict.fromkeys(fields)))
        mine = owners & set(parts_of(method))
        if not any(_has(owner, name) for owner in mine):
            continue
        chosen[name if not dot or name in TrainOptions.model_fields else key] = value
    return chosen


def _options_of(method: str) -> list[str]:
    return [*METHODS[method].options.model_fields, *TrainOptions.model_fields]


def _has(method: str, name: str) -> bool:
    return name in _options_of(method)


def _not_valid(name: str, value: object, bound: str) -> UsageError:
    return UsageError(
        say(f"{name}={value} is not valid.", f"{name}={value} 无效。"),
        say(f"It must be {bound}.", f"取值须{bound}。"),
    )
