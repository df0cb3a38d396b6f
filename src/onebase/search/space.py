"""The search space of a race: configurations of methods and settings, the most promising first."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onebase.adapters.methods import METHODS, canonical_method, parts_of
from onebase.data.yaml_file import read_yaml
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.training.job import Job

# One dimension: the settings of each choice; the first is the method's default or the most likely.
Axis = tuple[Mapping[str, Any], ...]

# The same for all configurations: they share rows, length and the frozen trunk.
SHARED = ("epochs", "held_out", "max_tokens", "trunk")

_TOKENS: Axis = ({}, {"virtual_tokens": 40}, {"virtual_tokens": 10})
_INIT: Axis = ({}, {"init": "vocab"})
_RANK: Axis = ({}, {"rank": 16, "alpha": 32.0}, {"rank": 4, "alpha": 8.0})
# Factors on a method's default learning rate, and its other dimensions.
_RATES: dict[str, tuple[float, ...]] = {
    "full": (1, 2, 0.5, 4),
    "lora": (1, 2, 0.5, 4),
    "qlora": (1, 2, 0.5, 4),
    "ia3": (1, 3, 0.3),
    "prompt-tuning": (1, 2, 0.5),
    "p-tuning": (1, 0.3, 2),
    "p-tuning-v2": (1, 0.3, 2),
}
_AXES: dict[str, tuple[Axis, ...]] = {
    "full": (),
    "lora": (_RANK,),
    "qlora": (_RANK,),
    "ia3": (),
    "prompt-tuning": (_TOKENS, _INIT),
    "p-tuning": (({}, {"encoder": "lstm"}), ({}, {"virtual_tokens": 40})),
    "p-tuning-v2": (_TOKENS, _INIT),
}
# The order of methods: every method's default among the first seven, then more of those that do well.
_TURNS = (
    *("lora", "p-tuning-v2", "prompt-tuning", "p-tuning", "ia3", "lora"),
    *("lora+p-tuning-v2", "p-tuning-v2", "lora", "prompt-tuning", "p-tuning", "p-tuning-v2"),
    *("lora", "p-tuning-v2", "prompt-tuning", "p-tuning", "lora", "ia3"),
    *("lora+p-tuning-v2", "p-tuning-v2", "prompt-tuning", "p-tuning", "lora", "lora"),
)


@dataclass(frozen=True)
class Configuration:
    """One configuration of a race: its `number` (from 1), its method, and its own settings."""

    number: int
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Like `lora rank=16 learning_rate=0.004`."""
        return " ".join([self.method, *(f"{key}={self.settings[key]}" for key in self.settings)])


@dataclass(frozen=True)
class Space:
    """Distinct configurations, in the order in which they are tried."""

    configurations: tuple[Configuration, ...]

    def first(self, count: int) -> tuple[Configuration, ...]:
        """The first `count`. Raises UsageError where there are not as many, or too few to race."""
        if count < 2:
            raise UsageError(
                say(f"A race of {count} configuration is not a race.", f"{count} 个配置无法竞赛。"),
                say("Race at least 2 configurations.", "请至少使用 2 个配置。"),
            )
        if count > len(self.configurations):
            raise UsageError(
                say(
                    f"The space has {len(self.configurations)} configurations, not {count}.",
                    f"搜索空间只有 {len(self.configurations)} 个配置，不足 {count} 个。",
                ),
                say(
                    "Ask for fewer with --configs, or enlarge the space with --methods or --space.",
                    "请用 --configs 减少数量，或用 --methods、--space 扩大搜索空间。",
                ),
            )
        return self.configurations[:count]


def default_space(methods: Sequence[str] = (), fixed: Sequence[str] = ()) -> Space:
    """Configurations around each method's defaults, the defaults first; of `methods` only, if any are
    named. `fixed` settings are the same for all configurations. Raises UsageError.
    """
    chosen = list(dict.fromkeys(canonical_method(name) for name in methods))
    turns = [name for name in _TURNS if name in chosen or not chosen]
    turns += [name for name in chosen if name not in turns]
    axes = {name: [_without(axis, fixed) for axis in _default_axes(name)] for name in turns}
    return _space(turns, axes)


def read_space(file: str | Path) -> Space:
    """The space in a YAML file: a list of `{method, set}`, in that order; or methods, each with its
    settings and their values, every combination of which is raced.

    Raises UsageError naming the method and the key.
    """
    path = Path(file)
    content = read_yaml(path)
    if isinstance(content, list) and content:
        space = _numbered(_listed(path, item) for item in content)
    elif isinstance(content, dict) and content:
        axes = {_method(path, name): _axes(path, name, content[name]) for name in content}
        space = _space(list(axes), axes)
    else:
        raise _shape(path, content)
    for configuration in space.configurations:
        for key in configuration.settings:
            if key in SHARED:
                raise UsageError(
                    say(
                        f"{path}: {key} must be the same for all configurations of a race.",
                        f"{path}：同一竞赛中各配置的 {key} 不能不同。",
                    ),
                    say(f"Set it for all of them: --set {key}=….", f"请统一给出：--set {key}=…。"),
                )
        Job("race", "", configuration.method, set=configuration.settings).options()
    return space


def _default_axes(method: str) -> list[Axis]:
    """The dimensions of a method, its learning rate first; of a composite, those of each method, at its
    default learning rate.
    """
    names = parts_of(method)
    if len(names) == 1:
        rate = METHODS[method].learning_rate
        rates: Axis = tuple(
            {} if factor == 1 else {"learning_rate": float(f"{factor * rate:.2g}")}
            for factor in _RATES[method]
        )
        return [rates, *_AXES[method]]
    return [
        tuple({f"{name}.{key}": value for key, value in choice.items()} for choice in axis)
        for name in names
        for axis in _AXES[name]
    ]


def _without(axis: Axis, fixed: Sequence[str]) -> Axis:
    """The axis without the choices that set one of the `fixed` settings."""
    kept = [
        choice
        for choice in axis
        if not any(key in fixed or key.rpartition(".")[2] in fixed for key in choice)
    ]
    return tuple(kept)


def _space(turns: Sequence[str], axes: Mapping[str, Sequence[Axis]]) -> Space:
    """Every combination of each method's axes, the methods taking turns."""
    remaining = {method: _combinations(axes[method]) for method in dict.fromkeys(turns)}

    def taking_turns() -> Iterator[tuple[str, dict[str, Any]]]:
        exhausted: set[str] = set()
        for method in itertools.cycle(turns):
            settings = next(remaining[method], None)
            if settings is not None:
                yield method, settings
                continue
            exhausted.add(method)
            if len(exhausted) == len(remaining):
                return

    return _numbered(taking_turns())


def _combinations(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Every combination of one choice an axis, ordered by the distance of the choices from the first."""
    index_tuples = itertools.product(*(range(len(axis)) for axis in axes))
    for indices in sorted(index_tuples, key=lambda item: (sum(item), [-i for i in item])):
        settings: dict[str, Any] = {}
        for axis, index in zip(axes, indices, strict=True):
            settings |= axis[index]
        yield settings


def _numbered(configurations: Iterator[tuple[str, dict[str, Any]]]) -> Space:
    distinct: list[tuple[str, dict[str, Any]]] = []
    for item in configurations:
        if item not in distinct:
            distinct.append(item)
    return Space(
        tuple(
            Configuration(number, method, settings)
            for number, (method, settings) in enumerate(distinct, start=1)
        )
    )


def _method(path: Path, name: object) -> str:
    if not isinstance(name, str):
        raise _shape(path, name)
    return canonical_method(name)


def _axes(path: Path, name: str, settings: Any) -> list[Axis]:
    """A method's settings as axes; a single value is an axis with one choice."""
    if settings is None:
        return []
    if not isinstance(settings, dict):
        raise _shape(path, {name: settings})
    axes: list[Axis] = []
    for key, values in settings.items():
        choices = values if isinstance(values, list) else [values]
        if not choices:
            raise UsageError(
                say(f"{path}: {name} has no value for {key}.", f"{path}：{name} 的 {key} 没有值。"),
                say(f"Write {key}: [8, 16], or take it out.", f"请写成 {key}: [8, 16]，或去掉它。"),
            )
        axes.append(tuple({str(key): _number(value)} for value in choices))
    return axes


def _listed(path: Path, item: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(item, dict) or "method" not in item:
        raise _shape(path, item)
    for key in item:
        if key not in ("method", "set"):
            raise unknown("key of a configuration", "配置键", key, ("method", "set"))
    settings = item.get("set") or {}
    if not isinstance(settings, dict):
        raise _shape(path, item)
    return _method(path, item["method"]), {
        str(key): _number(value) for key, value in settings.items()
    }


def _number(value: Any) -> Any:
    """YAML 1.1 reads 3e-2 as text; here it is a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _shape(path: Path, content: object) -> UsageError:
    return UsageError(
        say(
            f"{path} is not a search space: {content!r}.",
            f"{path} 不是有效的搜索空间：{content!r}。",
        ),
        say(
            "Write methods with values (lora: {rank: [8, 16]}), or a list of {method: lora, set: "
            "{rank: 8}}.",
            "请写方法及其取值（lora: {rank: [8, 16]}），或列表 {method: lora, set: {rank: 8}}。",
        ),
    )
