"""What was measured of one method, over all of its seeds."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from onebase.compare.result import Arm, Comparison, CurvePoint


@dataclass(frozen=True)
class MeasuredMethod:
    """One method's metrics and costs: each the mean over the seeds that measured it, None where no seed
    did. `forgetting` is by language the rise of the loss on neutral text, in nats per token.
    """

    name: str
    arms: tuple[Arm, ...]
    metrics: Mapping[str, float]
    forgetting: Mapping[str, float]
    trainable: int
    trainable_percent: float
    adapter_bytes: int
    peak_memory_bytes: float | None
    seconds: float | None
    cpu_seconds: float | None
    load_seconds: float | None
    tokens_per_second: float | None

    @property
    def trained(self) -> bool:
        """Whether it is a trained method, not the base."""
        return self.arms[0].trained

    @property
    def diverged(self) -> int:
        """How many of its seeds diverged."""
        return sum(arm.diverged for arm in self.arms)

    def tokens_to(self, loss: float) -> list[int | None]:
        """For each seed the tokens of training at the first evaluation whose validation loss is at most
        `loss`; None for a seed that never gets there.
        """
        return [_tokens_to(arm.curve, loss) for arm in self.arms]


def measured_methods(comparison: Comparison) -> dict[str, MeasuredMethod]:
    """Every method by its name, in the order of the comparison."""
    return {name: _measured(comparison, name) for name in comparison.methods}


def _measured(comparison: Comparison, name: str) -> MeasuredMethod:
    every = tuple(arm for arm in comparison.arms if arm.method == name)
    arms = [arm for arm in every if not arm.diverged] or list(every)
    costs = [arm.cost for arm in arms if arm.cost is not None]
    return MeasuredMethod(
        name=name,
        arms=every,
        metrics=_means(arm.metrics for arm in arms if not arm.diverged),
        forgetting=_means(
            {tongue: item.after - item.before for tongue, item in arm.forgetting.items()}
            for arm in arms
        ),
        trainable=arms[0].trainable,
        trainable_percent=arms[0].trainable_percent,
        adapter_bytes=arms[0].adapter_bytes,
        peak_memory_bytes=_mean(cost.peak_memory_bytes for cost in costs),
        seconds=_mean(cost.seconds for cost in costs),
        cpu_seconds=_mean(cost.cpu_seconds for cost in costs),
        load_seconds=_mean_of(arms, lambda arm: arm.load_seconds),
        tokens_per_second=_mean_of(arms, lambda arm: arm.tokens_per_second),
    )


def _tokens_to(curve: Iterable[CurvePoint], loss: float) -> int | None:
    return next((point.tokens for point in curve if point.loss <= loss), None)


def _mean_of(arms: Iterable[Arm], value: Callable[[Arm], float | None]) -> float | None:
    return _mean(number for arm in arms if (number := value(arm)) is not None)


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.fmean(known) if known else None


def _means(tables: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each key over the tables that have it, in the order of the first table."""
    values: dict[str, list[float]] = {}
    for table in tables:
        for key, value in table.items():
            values.setdefault(key, []).append(value)
    return {key: statistics.fmean(numbers) for key, numbers in values.items()}
