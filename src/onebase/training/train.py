"""Training jobs together, from their data to versioned adapters in the workspace."""

from collections.abc import Sequence

from onebase.adapters.methods import parts_of
from onebase.adapters.store import StoredAdapter, check_task_name
from onebase.adapters.workspace import Workspace
from onebase.data.encoding import codec_of
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.render_date import moment_of, present
from onebase.runs.run import Run
from onebase.training.execution import execute, summary
from onebase.training.job import Job, check_seed
from onebase.training.job_state import Learner
from onebase.training.loop import Watcher
from onebase.training.resume import interrupted_run
from onebase.training.run_config import request_of

__all__ = ["check_jobs", "precision_for", "summary", "train"]


def train(
    jobs: Sequence[Job],
    *,
    base: Base | None = None,
    workspace: Workspace | None = None,
    watcher: Watcher | None = None,
    restart: bool = False,
) -> list[StoredAdapter]:
    """Train every job together on one base and store each result as a new version.

    Where the newest run with the same jobs, data and base was interrupted, that one goes on, to
    the same adapters; `restart` begins anew. Everything about the jobs is checked before the
    first step. Raises UsageError or DataError; Interrupted (a KeyboardInterrupt) after Ctrl-C,
    with a checkpoint and no adapter; OnebaseError when a job left nothing to keep (the others are
    stored) or the adapters can't be stored.
    """
    check_jobs(jobs)
    workspace = workspace or Workspace()
    base = base or Base.load(precision=precision_for(jobs, None))
    moment = present()
    learners = [Learner(job, base, moment=moment) for job in jobs]
    config = request_of(base, learners)
    earlier = None if restart else interrupted_run(workspace, config)
    if earlier is not None and any(learner.template.dated for learner in learners):
        moment = moment_of(earlier.config)
        learners.clear()  # each may have a model of its own
        learners += [Learner(job, base, moment=moment) for job in jobs]
        config = request_of(base, learners)
    run = earlier or Run.create(workspace, config)
    resumed = earlier is not None
    return execute(run, workspace, base, learners, config, watcher, resumed=resumed)


def check_jobs(jobs: Sequence[Job]) -> None:
    """Refuse, before anything is loaded, what can't be trained together. Raises UsageError."""
    if not jobs:
        raise UsageError(
            say("There is no job to train.", "没有要训练的任务。"),
            say(
                "Give --task and --data, or a tasks.yaml with -c.",
                "请给出 --task 和 --data，或用 -c 指定 tasks.yaml。",
            ),
        )
    seen: set[str] = set()
    for job in jobs:
        check_task_name(job.task)
        job.options()
        if job.encoding is not None:
            codec_of(job.encoding)
        check_seed(job.seed)
        if job.task in seen:
            raise UsageError(
                say(f"Two jobs are called {job.task!r}.", f"有两个任务都叫 {job.task!r}。"),
                say("Give each its own task name.", "请使用不同的任务名。"),
            )
        seen.add(job.task)


def precision_for(jobs: Sequence[Job], chosen: str | None) -> str | None:
    """The precision to load a base in for `jobs`: what the user has `chosen`, or what they need.

    Raises UsageError where qlora, which needs nf4, and the rest don't go together.
    """
    methods = {job.task: parts_of(job.method) for job in jobs}
    four_bit = [task for task, names in methods.items() if "qlora" in names]
    if not four_bit or (chosen or "").partition(":")[0] == "nf4":
        return chosen
    if chosen is None and len(four_bit) == len(methods):
        return "nf4"
    names = ", ".join(four_bit)
    raise UsageError(
        say(
            f"{names}: qlora learns on a base in precision nf4, and "
            + (f"{chosen} was chosen." if chosen else "other jobs share the base."),
            f"{names}：qlora 在 nf4 精度的基座上学习，而"
            + (f"所选精度为 {chosen}。" if chosen else "其他任务也共用该基座。"),
        ),
        say(
            "Choose precision nf4 for all of them, or train the others apart.",
            "请为全部任务选择 nf4 精度，或分开训练。",
        ),
    )
