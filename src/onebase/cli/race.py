"""`onebase race`: many configurations at once, losers stopped early, the best kept."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from onebase.cli.options import (
    BaseFlags,
    DataOption,
    JobFlags,
    LearningFlags,
    SessionFlags,
    TaskOption,
)
from onebase.cli.session import begin
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE


def race_command(
    task: TaskOption = None,
    data: DataOption = None,
    budget: Annotated[
        str | None,
        typer.Option(help="600s, 10m, 1h, or tokens to train on: 200k, 200000tokens."),
    ] = None,
    configs: Annotated[
        int | None, typer.Option(help="Number of configurations; by default as the budget allows.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="The winner's epochs; by default as the budget allows.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Race these methods only, separated by commas.")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="A YAML file: method: {setting: [values]}, or a list.")
    ] = None,
    *,
    base: BaseFlags,
    learning: LearningFlags,
    flags: SessionFlags,
) -> None:
    """Race many configurations on one task, stop losers early, and keep the best.

    All that remain train together on one base. Ctrl-C at any time keeps the best so far.
    """
    from onebase.cli.jobs import tasks_of
    from onebase.cli.race_report import run_race, show_race, space_of
    from onebase.cli.training import load_base
    from onebase.runs.interruption import Interrupted
    from onebase.search.budget import Budget
    from onebase.search.successive_halving import candidate_job
    from onebase.training.train import precision_for

    session = begin(flags)
    if not task or not data:
        raise UsageError(
            say(
                "There is nothing to race: --task and --data are missing.",
                "没有竞赛内容：缺少 --task 和 --data。",
            ),
            say("Give both.", "请给出两者。"),
        )
    limit = None if budget is None else Budget.read(budget)
    if epochs is not None:
        learning = replace(learning, set_=[*(learning.set_ or []), f"epochs={epochs}"])
    (job,) = tasks_of(JobFlags(task=task, data=data), learning).jobs
    configurations = space_of(methods, space, job)
    count = len(configurations.configurations) if configs is None else configs
    jobs = [candidate_job(job, item, 1) for item in configurations.first(count)]
    for item in jobs:
        item.options()
    session.workspace.require_writable()
    loaded = load_base(base.base or DEFAULT_BASE, precision_for(jobs, base.precision))
    raced = run_race(session, job, loaded, configurations, limit, configs)
    show_race(session, raced)
    if raced.end == "interrupted":
        raise typer.Exit(Interrupted.exit_code)
