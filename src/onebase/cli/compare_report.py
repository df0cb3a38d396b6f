"""Running a comparison with the live display, and its result as a person reads it."""

from onebase.cli.display import run_display
from onebase.cli.jobs import job_fields
from onebase.cli.options import LearningFlags
from onebase.cli.session import Session
from onebase.compare.compare import compare
from onebase.compare.options import CompareOptions
from onebase.compare.result import Comparison
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.serving.server_lock import yield_to_server
from onebase.training.job import Job


def compared_job(task: str | None, data: str | None, learning: LearningFlags) -> Job:
    """The job of a comparison's flags. Raises UsageError where --task or --data is missing."""
    if not task or not data:
        raise UsageError(
            say(
                "There is nothing to compare: --task and --data are missing.",
                "没有要对比的内容：缺少 --task 和 --data。",
            ),
            say(
                "Give both, or the config of an earlier comparison with -c.",
                "请给出两者，或用 -c 指定以前对比实验的配置。",
            ),
        )
    return Job(task=task, data=data, **job_fields(learning))


def run_comparison(session: Session, job: Job, options: CompareOptions, base: Base) -> Comparison:
    """Compare with the live display; an interrupted comparison of the same rows continues."""
    with yield_to_server(session.workspace), run_display(session.workspace) as display:
        return compare(job, options, base=base, workspace=session.workspace, observer=display)


def show_comparison(session: Session, comparison: Comparison) -> None:
    """The result: the table of methods, who is tied, and where the report is."""
    session.show({"run": comparison.run})
