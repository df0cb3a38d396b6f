"""`onebase race`: trains many configurations, stops the worse ones early, and stores the best."""

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
        typer.Option(help="A time (600s, 10m, 1h) or training tokens (200k, 200000tokens)."),
    ] = None,
    configs: Annotated[
        int | None,
        typer.Option(help="Number of configurations; the default depends on the budget."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the finalists; the default depends on the budget.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Only race these methods, separated by commas.")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="A YAML file: method: {setting: [values]}, or a list.")
    ] = None,
    *,
    base: BaseFlags,
    learning: LearningFlags,
    flags: SessionFlags,
) -> None:
    """Train many configurations of one task, stop the worse ones early, and store the best.

    They train together on one base. Ctrl-C at any time stores the best so far.
    """
    from onebase.cli.display import run_display
    from onebase.cli.jobs import tasks_of
    from onebase.cli.race_report import show_race, space_of
    from onebase.cli.training import load_base
    from onebase.runs.interruption import Interrupted
    from onebase.search.budget import Budget
    from onebase.search.candidate import candidate_job
    from onebase.search.race import race
    from onebase.training.train import precision_for

    session = begin(flags)
    if not task or not data:
        raise UsageError(
            say(
                "There is nothing to race: --task and --data are required.",
                "没有竞赛内容：必须给出 --task 和 --data。",
            ),
            say("Give both options.", "请给出这两个选项。"),
        )
    limit = None if budget is None else Budget.read(budget)
    if epochs is not None:
        learning = replace(learning, set_=[*(learning.set_ or []), f"epochs={epochs}"])
    (job,) = tasks_of(JobFlags(task=task, data=data), learning).jobs
    search_space = space_of(methods, space, job)
    count = len(search_space.configurations) if configs is None else configs
    candidates = [candidate_job(job, item, 1) for item in search_space.first(count)]
    for candidate in candidates:
        candidate.options()  # raises for an invalid setting
    session.workspace.require_writable()
    loaded = load_base(base.base or DEFAULT_BASE, precision_for(candidates, base.precision))
    with run_display(session.workspace) as display:
        raced = race(
            job,
            base=loaded,
            workspace=session.workspace,
            observer=display,
            space=search_space,
            budget=limit,
            count=configs,
        )
    show_race(session, raced)
    if raced.end == "interrupted":
        raise typer.Exit(Interrupted.exit_code)
