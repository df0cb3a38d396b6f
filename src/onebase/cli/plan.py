"""`onebase plan`."""

from onebase.cli.options import BaseFlags, JobFlags, LearningFlags, RestartOption, SessionFlags
from onebase.cli.session import begin, note
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE


def plan_command(
    *,
    job: JobFlags,
    base: BaseFlags,
    learning: LearningFlags,
    restart: RestartOption = False,
    flags: SessionFlags,
) -> None:
    """Estimate what a training needs, and whether it fits. Takes the options of train.

    Runs a few steps and saves nothing. The estimates are for the whole training.
    """
    from onebase.cli.jobs import tasks_of
    from onebase.cli.plan_report import show_plan
    from onebase.planning.plan import plan
    from onebase.training.train import check_jobs

    session = begin(flags)
    tasks = tasks_of(job, learning)
    check_jobs(tasks.jobs)
    name = base.base or tasks.base or DEFAULT_BASE
    note(say(f"Loading {name} and trying a few steps …", f"正在加载 {name} 并试训练几步 …"))
    precision = base.precision or tasks.precision
    made = plan(tasks.jobs, base=name, precision=precision, workspace=session.workspace)
    show_plan(session, made)
