"""The constraints of a recommendation: what a method may take at most, as it was measured alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from onebase.compare.recommend.costs import COSTS, CostName
from onebase.errors import UsageError
from onebase.language import say


@dataclass(frozen=True)
class Limits:
    """The most that a method may take alone: memory at the peak, time of training, size of its adapter.
    None means unlimited.
    """

    peak_memory_bytes: float | None = None
    seconds: float | None = None
    adapter_bytes: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.given().items():
            if not limit > 0:
                what = say(*COSTS[name].name)
                raise UsageError(
                    say(f"A limit of {limit:g} on the {what}.", f"{what}的上限为 {limit:g}。"),
                    say("Give more than 0, or leave it out.", "请给出大于 0 的值，或去掉该限制。"),
                )

    def given(self) -> dict[CostName, float]:
        """The limits that there are."""
        names: dict[str, CostName] = {name: name for name in COSTS}
        values = {names[item.name]: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def exceeded(self, costs: Mapping[CostName, float]) -> list[str]:
        """What rules a method with these costs out, a clause for each limit; empty if nothing does."""
        clauses = []
        for name, limit in self.given().items():
            kind, measured = COSTS[name], costs.get(name)
            what, most = say(*kind.name), kind.text(limit)
            if measured is None:
                clauses.append(
                    say(
                        f"its {what} alone was not measured, so {most} cannot be promised",
                        f"未测量其单独的{what}，无法保证不超过 {most}",
                    )
                )
            elif measured > limit:
                value, over = kind.text(measured), kind.text(measured - limit)
                clauses.append(
                    say(
                        f"{what} {value}, {over} over the limit of {most}",
                        f"{what} {value}，超出上限 {most} 达 {over}",
                    )
                )
        return clauses

    def overshoot(self, costs: Mapping[CostName, float]) -> float:
        """The largest ratio of a cost to its limit; infinite where one was not measured."""
        return max(
            (costs.get(name, math.inf) / limit for name, limit in self.given().items()),
            default=0.0,
        )

    def raised_to(self, costs: Mapping[CostName, float]) -> "Limits":
        """These limits, raised where a method with these costs exceeds them."""
        return Limits(
            **{name: max(limit, costs.get(name, limit)) for name, limit in self.given().items()}
        )
