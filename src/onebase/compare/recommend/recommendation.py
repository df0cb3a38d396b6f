"""What a recommendation is asked for, and what it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from onebase.adapters.workspace import Workspace
from onebase.compare.recommend.limits import Limits
from onebase.compare.recommend.next_command import Asked


@dataclass(frozen=True)
class PlannedCost:
    """What one training of these methods together takes by the estimate of `plan`. None: unknown."""

    methods: tuple[str, ...]
    seconds: float | None
    memory_bytes: int


# The estimate for these methods (all of them, if empty) on a task; None where there is none.
Planner = Callable[[Asked, Sequence[str]], PlannedCost | None]


@dataclass(frozen=True)
class Question:
    """What a recommendation is asked for. `preference` is a name of PREFERENCES; `base` limits it to
    comparisons on that base. `known` says where the task's data are, for a task that was not compared;
    `machine` describes this one.
    """

    task: str | None = None
    limits: Limits = field(default_factory=Limits)
    preference: str = "quality"
    base: str | None = None
    known: Asked | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    workspace: Workspace = field(default_factory=Workspace)


@dataclass(frozen=True)
class Recommendation:
    """The method to train, or that there is none. `tied` are the methods that the rows cannot tell from
    it, itself among them; `excluded` says of every other method that was compared why it is not the
    one. `runs` measured what `reasons` cite; `next` is a command.
    """

    decision: Literal["method", "declined"]
    method: str | None
    settings: Mapping[str, Any]
    reasons: tuple[str, ...]
    runs: tuple[str, ...]
    next: str
    tied: tuple[str, ...] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As `onebase recommend --json` shows it."""
        return asdict(self)
