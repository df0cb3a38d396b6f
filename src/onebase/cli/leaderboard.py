"""The ladder of a race as it is shown: a table, and live while it is climbed."""

import sys
from collections.abc import Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.progress import TaskID
from rich.table import Table

from onebase.cli.progress import bars
from onebase.cli.session import note
from onebase.language import say
from onebase.search.budget import RacePlan
from onebase.search.leaderboard import Place, ranked
from onebase.search.space import Configuration
from onebase.training.job_state import Learner


def ladder_header(plan: RacePlan) -> list[str]:
    """The columns of a ladder: a rung is headed by its share of the full length."""
    return [
        say("rank", "名次"),
        "#",
        say("configuration", "配置"),
        *_shares(plan),
        say("end", "终点"),
        say("left at", "离开于"),
        say("tokens", "词元"),
    ]


def _shares(plan: RacePlan) -> list[str]:
    return [str(Fraction(rung.share).limit_denominator(64)) for rung in plan.ladder]


def ladder_rows(plan: RacePlan, places: Sequence[Place]) -> list[list[Any]]:
    """The rows below those columns, `places` best first."""
    return [[rank, *_row(plan, place)] for rank, place in enumerate(places, start=1)]


def _row(plan: RacePlan, place: Place) -> list[Any]:
    """One configuration: its held-out loss at each rung and at the end."""
    losses = [f"{loss:.3f}" for loss in place.rungs]
    losses += [""] * (len(plan.ladder) - len(losses))
    late = [item.loss for item in place.judged if item.rung is None]
    return [
        place.configuration.number,
        place.configuration.text,
        *losses,
        f"{min(late):.3f}" if late else "",
        _left(plan, place),
        f"{place.tokens:,}",
    ]


def _left(plan: RacePlan, place: Place) -> str:
    if place.left is None:
        return ""
    at = [*_shares(plan), say("end", "终点")][place.left.rung - 1]
    reasons = {
        "exploded": say("exploded", "损失发散"),
        "not finite": say("not finite", "非有限值"),
        "stopped": say("stopped", "停止"),
    }
    reason = reasons.get(place.left.reason)
    return f"{at}, {reason}" if reason else at


class RaceDisplay:
    """A RaceWatcher that draws the ladder and a bar on a terminal, and prints lines elsewhere."""

    def __init__(self) -> None:
        self._progress = bars("{task.completed:,.0f}/{task.total:,.0f}")
        # The command's result shows the last ladder once more, to stay.
        self._live = Live(self._progress, console=self._progress.console, transient=True)
        self._bar: TaskID | None = None
        self._plan: RacePlan | None = None
        self._tokens: dict[str, int] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if sys.stderr.isatty():
            self._live.stop()

    def planned(self, plan: RacePlan, configurations: Sequence[Configuration]) -> None:
        """Say what was chosen, before it starts."""
        self._plan = plan
        shares = _shares(plan)
        stays = ", ".join(
            say(f"{rung.keep} at {share}", f"{share} 处 {rung.keep} 个")
            for rung, share in zip(plan.ladder, shares, strict=True)
        )
        methods = ", ".join(dict.fromkeys(item.method for item in configurations))
        note(
            say(
                f"Racing {plan.count} configurations ({methods}) over {plan.epochs} epochs; "
                f"staying: {stays} of the way. About {plan.learned:,} tokens to learn from and "
                f"{plan.judged:,} to judge by, {plan.share:.0%} of training all to the end.",
                f"{plan.count} 个配置竞赛（{methods}），共 {plan.epochs} 个 epoch；"
                f"留下：全程 {stays}。预计学习 {plan.learned:,} 个词元、评估 {plan.judged:,} 个词元，"
                f"为全部训练到底的 {plan.share:.0%}。",
            )
        )
        self._bar = self._progress.add_task(
            say("tokens", "词元"), total=plan.learned, completed=self._learned(), numbers=""
        )

    def started(self, learners: Sequence[Learner]) -> None:
        """Nothing: `planned` has said it."""

    def learned(self, learner: Learner, record: dict[str, Any]) -> None:
        """Move the bar."""
        self._tokens[learner.job.task] = learner.tokens
        if self._bar is not None:
            self._progress.update(
                self._bar,
                completed=self._learned(),
                numbers=f"{learner.job.task} {say('loss', '损失')} {record['loss']:.3f}",
            )

    def judged(self, learner: Learner, record: dict[str, Any]) -> None:
        """Nothing: the rung shows all of them."""

    def halved(self, rung: int, places: Sequence[Place]) -> None:
        """Show the ladder as it stands; off a terminal, a line."""
        assert self._plan is not None
        order = ranked(places)
        staying = [place for place in order if place.left is None]
        best = staying[0]
        share = _shares(self._plan)[rung - 1]
        if not sys.stderr.isatty():
            note(
                say(
                    f"At {share}: {len(staying)} of {len(places)} stay; best: "
                    f"{best.configuration.number} {best.configuration.text}, held-out loss "
                    f"{best.rungs[-1]:.3f}",
                    f"{share} 处：{len(places)} 个中留下 {len(staying)} 个；最佳："
                    f"{best.configuration.number} {best.configuration.text}，留出损失 "
                    f"{best.rungs[-1]:.3f}",
                )
            )
            return
        table = Table(*ladder_header(self._plan))
        for place, row in zip(order, ladder_rows(self._plan, order), strict=True):
            table.add_row(*map(str, row), style="dim" if place.left else "bold")
        self._live.update(Group(table, self._progress))

    def noted(self, text: str) -> None:
        """Print a sentence above the ladder."""
        note(text)

    def _learned(self) -> int:
        return sum(self._tokens.values())
