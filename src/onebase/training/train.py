"""Training jobs together, from their data to versioned adapters in the workspace."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from onebase.adapters.methods import parts_of
from onebase.adapters.store import StoredAdapter, check_task_name
from onebase.adapters.workspace import Workspace
from onebase.data.encoding import codec_of
from onebase.errors import OnebaseError, UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.runs.render_date import local_time, render_date_of
from onebase.runs.resume import incomplete_config, interrupted_run, resumable_run
from onebase.runs.run import Run
from onebase.runs.session import RunSession, run_session
from onebase.training.job import Job, check_seed
from onebase.training.job_state import JobState
from onebase.training.loop import base_losses, train_together
from onebase.training.run_config import base_in, jobs_in, require_same_config, run_config
from onebase.training.stored_result import store_job, summary
from onebase.training.task_data import TaskData


class NothingStored(OnebaseError):
    """A training in which the loss of some jobs exploded or was no longer finite before their first
    evaluation: the tasks `lost` have no result; the others are stored.
    """

    def __init__(self, message: str, remedy: str, lost: Sequence[str] = ()) -> None:
        super().__init__(message, remedy)
        self.lost = tuple(lost)


def train(
    jobs: Sequence[Job],
    *,
    base: Base | None = None,
    workspace: Workspace | None = None,
    observer: Observer | None = None,
    restart: bool = False,
) -> list[StoredAdapter]:
    """Train every job together on one base and store each result as a new version.

    If the newest run with the same jobs, data and base was interrupted, that run continues, with the
    same result; `restart` begins a new one. Everything about the jobs is checked before the first
    step. Raises UsageError or DataError; Interrupted (a KeyboardInterrupt) after Ctrl-C, with a
    checkpoint and no adapter; OnebaseError if a job has nothing to store (the others are stored) or
    the adapters can't be stored.
    """
    check_jobs(jobs)
    workspace = workspace or Workspace()
    base = base or Base.load(precision=precision_for(jobs, None))
    now = local_time()
    states = [JobState(job, base, rendered_at=now) for job in jobs]
    config = run_config(base, states)
    earlier = None if restart else interrupted_run(workspace, config)
    if earlier is not None and any(state.template.dated for state in states):
        before = render_date_of(earlier.config)
        states.clear()  # each may have a model of its own
        states += [JobState(job, base, rendered_at=before) for job in jobs]
        config = run_config(base, states)
    return _train(states, config, base, workspace, earlier, observer)


def resume(
    id: str,
    *,
    base: Base | None = None,
    workspace: Workspace | None = None,
    observer: Observer | None = None,
) -> list[StoredAdapter]:
    """Continue the run `id` (or the only one whose id begins so) from its newest good checkpoint. The
    adapters are those of an uninterrupted run.

    Raises UsageError for a run that is unknown, ended or still running, and where its data, its
    settings or its base have changed; else as `train`.
    """
    workspace = workspace or Workspace()
    run = resumable_run(workspace, id)
    if base is None:
        name, precision = base_in(run)
        base = Base.load(name, precision=precision)
    before = run.config
    try:
        jobs = jobs_in(before)
    except (KeyError, TypeError) as error:
        raise incomplete_config(run, error) from error
    states = [JobState(job, base, rendered_at=render_date_of(before)) for job in jobs]
    config = run_config(base, states)
    require_same_config(run.id, before, config)
    return _train(states, config, base, workspace, run, observer)


def train_on(
    data: TaskData,
    jobs: Sequence[Job],
    *,
    base: Base,
    workspace: Workspace,
    rendered_at: datetime,
    observer: Observer | None = None,
) -> list[StoredAdapter]:
    """Train jobs on the same rows, `data`, which was rendered at `rendered_at`; else as `train`. An
    interrupted run of them continues.
    """
    check_jobs(jobs)
    states = [JobState(job, base, data, rendered_at=rendered_at) for job in jobs]
    config = run_config(base, states)
    earlier = interrupted_run(workspace, config)
    return _train(states, config, base, workspace, earlier, observer)


def _train(
    states: Sequence[JobState],
    config: dict[str, Any],
    base: Base,
    workspace: Workspace,
    earlier: Run | None,
    observer: Observer | None,
) -> list[StoredAdapter]:
    """Train the jobs to their ends in one run, a new one or the `earlier` one, and store each."""
    with joint_session(states, config, base, workspace, earlier=earlier, observer=observer) as run:
        joint = JointTraining(states, run)
        run.restore(
            joint,
            [state.template for state in states],
            # The config.yaml may have been edited since the checkpoint was saved.
            check=lambda before: require_same_config(run.run.id, before, config),
        )
        for state in states:
            run.recorder.left_out(state.task, state.data.bad)
            for text in state.notes:
                run.note(f"{state.task}: {text}", task=state.task)
        if joint.base_losses is None:
            joint.base_losses = base_losses(base, states, run.check)
            run.recorder.base_evaluated(joint.base_losses)
        run.recorder.started([state.start for state in states])
        train_together(states, run.recorder, joint)
        with run.storing(workspace):
            stored = [
                store_job(workspace, base, run.run, state, joint.base_losses.get(state.task))
                for state in states
                if state.best_step or not state.diverged
            ]
        lost = [state.task for state in states if state.diverged and not state.best_step]
        run.ending = "failed" if lost else "finished"
        run.summary = {"adapters": [summary(item) for item in stored], "diverged": lost}
    if lost:
        raise _nothing_stored(lost, stored)
    return stored


def joint_session(
    states: Sequence[JobState],
    config: dict[str, Any],
    base: Base,
    workspace: Workspace,
    *,
    earlier: Run | None = None,
    observer: Observer | None = None,
) -> AbstractContextManager[RunSession]:
    """The session of a run that trains `states` together, by the first one's seed."""
    return run_session(
        config,
        base,
        workspace,
        states[0].job.seed,
        earlier=earlier,
        observer=observer,
        save_seconds=min(state.options.save_seconds for state in states),
        save_limit=max(state.options.save_limit for state in states),
    )


class JointTraining:
    """Jobs that are trained together, as their run saves them. `base_losses` is the held-out loss of the
    bare base, by task; None until it was measured.
    """

    def __init__(self, states: Sequence[JobState], run: RunSession) -> None:
        self.base_losses: dict[str, float] | None = None
        self._states = states
        self._run = run
        self._reported: set[tuple[str, str]] = set()  # of a task, what it was

    @property
    def progress(self) -> Mapping[str, tuple[int, int]]:
        """Every task's steps: those done, and all."""
        return {state.task: (state.step, state.total_steps) for state in self._states}

    def state_dict(self) -> dict[str, Any]:
        """The state of all jobs for a checkpoint."""
        jobs = {state.task: state.state_dict() for state in self._states}
        return {"base_losses": self.base_losses, "jobs": jobs}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.base_losses = saved["base_losses"]
        for state in self._states:
            state.load_state_dict(saved["jobs"][state.task])
            self._reported |= {(state.task, problem) for problem in _problems(state)}

    def between_steps(self, *, evaluated: bool = False) -> None:
        """Report new problems, and save the run where it is time."""
        for state in self._states:
            for problem, note in _problems(state).items():
                if (state.task, problem) not in self._reported:
                    self._reported.add((state.task, problem))
                    trouble = {"trouble": state.trouble, "best_step": state.best_step}
                    facts: dict[str, Any] = trouble if problem == "trouble" else {}
                    self._run.note(note, task=state.task, step=state.step, **facts)
                    if problem == "trouble":
                        self._run.recorder.stopped(state.task, state.step, str(state.trouble))
        self._run.between_steps(evaluated=evaluated)

    def check(self) -> None:
        """Between two passes of an evaluation."""
        self._run.check()


def _problems(state: JobState) -> dict[str, str]:
    """What went wrong with a job so far, in words."""
    problems = {}
    if state.trouble:
        problems["trouble"] = _trouble_note(state)
    if state.without_gradient:
        problems["gradient"] = _no_gradient_note(state)
    return problems


def _trouble_note(state: JobState) -> str:
    task, step, best = state.task, state.step, state.best_step
    fact = (
        say("its loss has exploded", "其损失已发散")
        if state.trouble == "exploded"
        else say("its loss is no longer finite", "其损失已不是有限值")
    )
    kept = (
        say(f"its best state, of step {best}, is kept", f"保留其最佳状态（第 {best} 步）")
        if best
        else say("it has no state to keep", "没有可保留的状态")
    )
    return say(
        f"{task} stops after step {step}, alone: {fact}; {kept}. Lower its learning_rate.",
        f"{task} 在第 {step} 步后单独停止：{fact}；{kept}。请减小 learning_rate。",
    )


def _no_gradient_note(state: JobState) -> str:
    task, base = state.task, state.base
    text = say(
        f"{task}: the gradient was exactly 0 in the whole first epoch: nothing is learned.",
        f"{task}：第一轮中梯度始终恰好为 0：没有学到任何内容。",
    )
    window = getattr(base.model.config, "sliding_window", None)
    tokens = state.adapter.before_text
    if window and tokens:
        text += say(
            f" {base.name} attends to the last {window} tokens, and the {tokens} virtual tokens stand "
            "before the text: use lora, or a base with a longer attention window.",
            f"{base.name} 只关注最近 {window} 个词元，而 {tokens} 个虚拟词元位于文本之前："
            "请使用 lora，或换用窗口更大的基座。",
        )
    return text


def check_jobs(jobs: Sequence[Job]) -> None:
    """Raise UsageError, before anything is loaded, for jobs that can't be trained together."""
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


def _nothing_stored(lost: Sequence[str], stored: Sequence[StoredAdapter]) -> NothingStored:
    names = ", ".join(lost)
    kept = ", ".join(item.name for item in stored)
    return NothingStored(
        say(
            f"The loss of {names} exploded or was no longer finite before the first evaluation, so "
            "there is nothing to store.",
            f"{names} 的损失在第一次评估之前就已发散或不是有限值，没有可保存的结果。",
        )
        + (say(f" Stored: {kept}.", f"已保存：{kept}。") if kept else ""),
        say("Lower its learning_rate and train it again.", "请减小 learning_rate 后重新训练。"),
        lost,
    )
