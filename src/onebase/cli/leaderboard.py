"""The leaderboard of a race as a table."""

from collections.abc import Sequence
from typing import Any

from onebase.language import say
from onebase.quantity import listed
from onebase.search.budget import RacePlan
from onebase.search.leaderboard import Entry


def leaderboard_header(plan: RacePlan) -> list[str]:
    """The columns. A rung is named by its share of the full length."""
    return [
        say("rank", "名次"),
        "#",
        say("configuration", "配置"),
        *plan.shares,
        say("end", "终点"),
        say("stopped at", "停止于"),
        say("tokens", "词元"),
    ]


def leaderboard_rows(plan: RacePlan, entries: Sequence[Entry]) -> list[list[Any]]:
    """The rows. `entries` are sorted, the best first."""
    return [[rank, *_row(plan, entry)] for rank, entry in enumerate(entries, start=1)]


def _row(plan: RacePlan, entry: Entry) -> list[Any]:
    """One configuration: its held-out loss at each rung and at the end."""
    losses = [f"{loss:.3f}" for loss in entry.rung_losses]
    losses += [""] * (len(plan.rungs) - len(losses))
    losses_after_rungs = [item.loss for item in entry.evaluations if item.rung is None]
    return [
        entry.configuration.number,
        entry.configuration.text,
        *losses,
        f"{min(losses_after_rungs):.3f}" if losses_after_rungs else "",
        _stopped_at(plan, entry),
        f"{entry.tokens:,}",
    ]


def _stopped_at(plan: RacePlan, entry: Entry) -> str:
    """Where it stopped, and where it had been stopped before it was continued."""
    continued = ""
    if entry.continued_from is not None:
        share = plan.shares[entry.continued_from - 1]
        continued = say(f"continued from {share}", f"自 {share} 处继续")
    return listed([text for text in (_stop_text(plan, entry), continued) if text])


def _stop_text(plan: RacePlan, entry: Entry) -> str:
    if entry.stop is None:
        return ""
    place = [*plan.shares, say("end", "终点")][entry.stop.rung - 1]
    reasons = {
        "exploded": say("exploded", "损失发散"),
        "not finite": say("not finite", "非有限值"),
        "stopped": say("stopped", "停止"),
    }
    reason = reasons.get(entry.stop.reason)
    return listed([place, reason]) if reason else place
