"""`onebase recommend`: the method to train, from what was measured."""

from typing import Annotated

import typer

from onebase.cli.options import BaseOption, SessionFlags, TaskOption
from onebase.cli.session import begin


def recommend_command(
    task: TaskOption = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Most memory that the training may take at its peak: 4GB, 500MB."),
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Longest time of the training: 90s, 5m, 1h.")
    ] = None,
    adapter_size: Annotated[
        str | None, typer.Option("--adapter-size", help="Largest adapter: 500KB, 10MB.")
    ] = None,
    goal: Annotated[
        str | None,
        typer.Option(
            help="quality, speed or size: picks among methods that cannot be told apart; by default "
            "quality."
        ),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="Instead of a goal: best-quality, balance, little-memory, quick-prototype, many-tasks, "
            "production or research."
        ),
    ] = None,
    base: BaseOption = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="The data file of a task that has not been compared."),
    ] = None,
    *,
    flags: SessionFlags,
) -> None:
    """Which method to train, and why, from the comparisons in this workspace.

    It recommends nothing that was not measured: it says what to run instead, and what that takes.
    """
    from onebase.cli.recommend_report import limits_of, recommended, show_recommendation
    from onebase.compare.recommend.preferences import preference_named

    session = begin(flags)
    preference = preference_named(goal, scenario)
    limits = limits_of(memory, time, adapter_size)
    show_recommendation(
        session, recommended(session, limits, preference, task=task, base=base, data=data)
    )
