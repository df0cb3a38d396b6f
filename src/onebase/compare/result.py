"""What a comparison measured, row by row, as it is kept in its run's folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from onebase.compare.metrics.metric import METRICS

BASE = "base"  # the base with its instruction alone
EXAMPLES = "base+examples"  # the base with examples in its prompt
Kind = Literal["classification", "generation"]
# Where the settings of the methods come from.
Settings = Literal["defaults", "given", "tuned"]
LOWER_IS_BETTER = frozenset(metric.name for metric in METRICS.values() if metric.better == "lower")
# Measured, but neither better nor worse.
NEUTRAL = frozenset(metric.name for metric in METRICS.values() if metric.better == "neither")


@dataclass(frozen=True)
class HeldOutRow:
    """A held-out row: where it stands, the text of its input, and the reference answer. Rows with the
    same input have the same `cluster`; clusters are numbered from 0.
    """

    file: str
    line: int
    input: str
    reference: str
    cluster: int


@dataclass(frozen=True)
class Outcome:
    """One trained adapter (or the base) on one held-out row.

    `loss` is the mean over the row's `labels` (tokens with a loss), in nats. `answer` is the greedy
    answer, or the most likely label. `scores` has one number for each metric that is measured row by
    row, such as `accuracy` or `rouge_l`.
    """

    loss: float
    labels: int
    answer: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class CurvePoint:
    """The validation loss after `tokens` tokens of training."""

    tokens: int
    loss: float


@dataclass(frozen=True)
class Cost:
    """What the whole process of one training alone took: from its start to its end, loading included."""

    peak_memory_bytes: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Forgetting:
    """The loss on neutral text under the bare base and under the adapter, in nats per token."""

    before: float
    after: float


@dataclass(frozen=True)
class Arm:
    """One method with one seed; the base alone has none. The base's rows are not trained.

    `outcomes` are in the order of the held-out rows; empty where the training `diverged` before its first
    evaluation. `metrics` are over all rows. `cost` is known for the seeds that were trained in a process
    of their own.
    `forgetting` is by language (`en`, `zh`). `tokens_per_second` is the speed of answering,
    `load_seconds` the time from files to a loaded adapter. `identity` is a hash of all that decides the
    result; `run` is the run that measured it, `reused` whether that was an earlier one.
    """

    method: str
    seed: int | None
    settings: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]
    metrics: Mapping[str, float]
    identity: str
    run: str
    trainable: int = 0
    trainable_percent: float = 0.0
    adapter_bytes: int = 0
    cost: Cost | None = None
    load_seconds: float | None = None
    tokens_per_second: float | None = None
    forgetting: Mapping[str, Forgetting] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    training_losses: tuple[CurvePoint, ...] = ()
    diverged: bool = False
    reused: bool = False

    @property
    def trained(self) -> bool:
        """Whether it is a trained method, not the base."""
        return self.method not in (BASE, EXAMPLES)


@dataclass(frozen=True)
class NearDuplicate:
    """A held-out row that is nearly a training row: both places, and their similarity (0 to 1)."""

    held_out: str
    training: str
    similarity: float


@dataclass(frozen=True)
class Comparison:
    """Methods compared on one task. `metric` is the one that decides; `metrics` are all those that are
    measured row by row; of the user's own ones, less is better in those in `lower_is_better`.
    `rows_sha256` is over the rows of training, validation and held-out part as the model sees them.
    `phases` says where the time went: seconds by phase (`tuning`, `alone`, `training`, `scoring`,
    and `loading` of the base in nf4), in the order in which they ran.
    """

    run: str
    task: str
    base: str
    data: str
    kind: Kind
    metric: str
    metrics: tuple[str, ...]
    settings: Settings
    training_rows: int
    validation_rows: int
    held_out: tuple[HeldOutRow, ...]
    arms: tuple[Arm, ...]
    near_duplicates: tuple[NearDuplicate, ...]
    rows_sha256: str
    config: Mapping[str, Any]
    seconds: float
    cpu_seconds: float
    machine: Mapping[str, Any] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    lower_is_better: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods in the order of the arms, the base's rows among them."""
        return tuple(dict.fromkeys(arm.method for arm in self.arms))

    def arms_of(self, method: str) -> list[Arm]:
        """The arms of a method that count, by seed: those that diverged are left out."""
        return [
            arm for arm in self.arms if arm.method == method and arm.outcomes and not arm.diverged
        ]

    def values(self, arm: Arm, metric: str) -> list[float]:
        """A metric of every held-out row. Their mean is the metric of the whole set: the loss of a row
        counts as often as it has labels.
        """
        if metric != "loss":
            return [outcome.scores[metric] for outcome in arm.outcomes]
        mean = sum(outcome.labels for outcome in arm.outcomes) / len(arm.outcomes)
        return [outcome.loss * outcome.labels / mean for outcome in arm.outcomes]

    def better(self, metric: str, one: float, other: float) -> bool:
        """Whether `one` is the better value of a metric, which may be the user's own."""
        lower = metric in LOWER_IS_BETTER or metric in self.lower_is_better
        return one < other if lower else one > other

    @property
    def clusters(self) -> list[int]:
        """The cluster of every held-out row."""
        return [row.cluster for row in self.held_out]


def mean_loss(outcomes: Sequence[Outcome]) -> float:
    """The loss of a label over all rows, in nats."""
    labels = sum(outcome.labels for outcome in outcomes)
    return math.fsum(outcome.loss * outcome.labels for outcome in outcomes) / labels
