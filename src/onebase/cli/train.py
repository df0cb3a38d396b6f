"""`onebase train` and `onebase resume`.

Modules that import torch are imported in the commands, so that shell completion and `--help` stay fast.
"""

from typing import Annotated

import typer

from onebase.cli.options import BaseFlags, JobFlags, LearningFlags, RestartOption, SessionFlags
from onebase.cli.session import begin
from onebase.model.fetch import DEFAULT_BASE


def train_command(
    *,
    job: JobFlags,
    base: BaseFlags,
    learning: LearningFlags,
    restart: RestartOption = False,
    flags: SessionFlags,
) -> None:
    """Train one task, or all tasks of a tasks.yaml together on one base.

    If the training is interrupted, the same command continues it.
    """
    from onebase.cli.jobs import tasks_of
    from onebase.cli.training import load_base, run_training, show_trained
    from onebase.training.train import check_jobs, precision_for

    session = begin(flags)
    tasks = tasks_of(job, learning)
    check_jobs(tasks.jobs)
    precision = precision_for(tasks.jobs, base.precision or tasks.precision)
    session.workspace.require_writable()
    loaded = load_base(base.base or tasks.base or DEFAULT_BASE, precision)
    show_trained(session, run_training(session, tasks.jobs, loaded, restart=restart))


def resume_command(
    run: Annotated[str, typer.Argument(help="The run's id, or the beginning of it.")],
    *,
    flags: SessionFlags,
) -> None:
    """Continue an interrupted run; the result is the same as without the interruption."""
    from onebase.cli.aligning import resume_align
    from onebase.cli.training import load_base, resume_training, show_trained
    from onebase.runs.resume import resumable_run
    from onebase.training.run_config import base_in

    session = begin(flags)
    interrupted = resumable_run(session.workspace, run)
    base = load_base(*base_in(interrupted))
    if "compare" in interrupted.config:
        # Its libraries for statistics and plots take a second to import.
        from onebase.cli.compare_report import resume_comparing, show_comparison

        show_comparison(session, resume_comparing(session, interrupted.id, base))
    elif "align" in interrupted.config:
        resume_align(session, interrupted.id, base)
    else:
        show_trained(session, resume_training(session, interrupted.id, base))
