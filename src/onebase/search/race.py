"""A race: many configurations of one task learn together on one base, and the best is kept."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from onebase.adapters.experts import unchanged_experts
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.interruption import Interrupted, Interruption
from onebase.runs.recorder import RunRecorder, list_skipped
from onebase.runs.render_date import present
from onebase.runs.run import Ending, Run
from onebase.search.budget import (
    Budget,
    Limits,
    OutOfBudget,
    RacePlan,
    Size,
    choose,
    fits_seconds,
    fits_tokens,
)
from onebase.search.history import Follower, RaceWatcher
from onebase.search.leaderboard import Place, draw_ladder, ranked, write_ladder
from onebase.search.space import Configuration, Space, default_space
from onebase.search.successive_halving import Course, Entrant, NobodyLeft, entrant_job
from onebase.training.execution import summary
from onebase.training.job import Job, TrainOptions
from onebase.training.job_state import TaskData, task_data
from onebase.training.stored_result import store_once
from onebase.training.train import check_jobs, precision_for

RaceEnd = Literal["finished", "out of budget", "nobody left", "interrupted"]
# A time budget is planned by the speed of these first ones; no race has fewer, if the space allows.
_MEASURED = 3


@dataclass(frozen=True)
class Raced:
    """What a race left: the stored `adapter` of its best configuration, every configuration's
    place (best first), and how it ended. `judged_tokens` were run through for held-out losses.
    """

    run: Run
    adapter: StoredAdapter
    places: tuple[Place, ...]
    plan: RacePlan
    end: RaceEnd
    base_loss: float | None
    tokens: int
    judged_tokens: int
    seconds: float

    @property
    def plot(self) -> Path:
        """The ladder as a picture."""
        return self.run.path / "ladder.png"

    @property
    def ladder(self) -> list[dict[str, Any]]:
        """The ladder in plain values, best first."""
        return [place.as_row(rank) for rank, place in enumerate(self.places, start=1)]


def race(
    job: Job,
    *,
    base: Base | None = None,
    workspace: Workspace | None = None,
    watcher: RaceWatcher | None = None,
    space: Space | None = None,
    budget: Budget | None = None,
    count: int | None = None,
) -> Raced:
    """Race configurations of `space` (else the default one) at `job`'s task by successive halving,
    train the winner to the end and store it as the task's next version.

    `job.method` is not looked at, and `job.set` holds for all of them. What is not given of
    `count` and the job's epochs is chosen by the `budget`, its time counted from this call; when
    it is spent, and at Ctrl-C (which is not raised), the best so far is stored. Raises UsageError
    or DataError before the first step, OnebaseError when there is nothing to keep.
    """
    began = time.monotonic()
    budget, space = budget or Budget(), space or default_space(fixed=list(job.set))
    most = len(space.configurations)
    candidates = space.first(most if count is None else count)
    options = _check(job, candidates)
    workspace = workspace or Workspace()
    jobs = [entrant_job(job, item, options.epochs) for item in candidates]
    base = base or Base.load(precision=precision_for(jobs, None))
    template = Template(
        base.tokenizer,
        kind=job.template,
        instruction=job.instruction,
        max_tokens=options.max_tokens,
        moment=present(),
    )
    data = _data(replace(jobs[0], task=job.task), template)
    epochs = options.epochs if "epochs" in job.set else None
    choice = _Choice(Size.of(data, options.batch_size * options.accumulation), most, count, epochs)
    plan = choice.within(fits_tokens(budget.tokens) if budget.tokens else None)
    run = Run.create(workspace, _config(job, base, budget, plan, candidates))
    follower, interruption = Follower(watcher), Interruption()
    recorder = RunRecorder(run, follower)
    limits = Limits(
        interruption,
        deadline=began + budget.seconds if budget.seconds else math.inf,
        tokens=budget.tokens or math.inf,
    )
    on_gpu = [base.device] if base.device.type == "cuda" else []
    ending: Ending = "failed"
    outcome: dict[str, Any] = {}
    with run.hold(), torch.random.fork_rng(devices=on_gpu), interruption:
        # For what draws from torch itself, such as the dropout inside a whole model.
        torch.manual_seed(job.seed)
        try:
            list_skipped(run, job.task, data.bad)
            methods = [item.method for item in candidates]
            for text in [*data.notes, *unchanged_experts(base, methods)]:
                recorder.noted(text, task=job.task)
            course = Course(base, job, data, plan, recorder, follower, limits)
            end = _run(course, choice, limits, candidates, watcher)
            run.amend(_config(job, base, budget, course.plan, candidates))
            if end == "interrupted" and not course.tokens:
                raise KeyboardInterrupt
            best = course.best()
            raced = _store(run, workspace, base, job, course, best, end, began, recorder)
            ending = "interrupted" if end == "interrupted" else "finished"
            outcome = {"adapters": [summary(raced.adapter)], "end": end}
        except KeyboardInterrupt as stop:  # before the first step, or again at the very end
            ending = "interrupted"
            raise _nothing_kept(run) from stop
        finally:
            run.finish(ending, {"seconds": time.monotonic() - began, **outcome})
    return raced


@dataclass(frozen=True)
class _Choice:
    """What there is to choose from: the data's size, how many configurations there are at most,
    and their number and epochs where these are given.
    """

    size: Size
    most: int
    count: int | None
    epochs: int | None

    @property
    def open(self) -> bool:
        """Whether anything is left to choose."""
        return self.count is None or self.epochs is None

    def within(self, fits: Callable[[RacePlan], bool] | None) -> RacePlan:
        """The largest race that fits."""
        return choose(self.size, most=self.most, count=self.count, epochs=self.epochs, fits=fits)


def _run(
    course: Course,
    choice: _Choice,
    limits: Limits,
    candidates: Sequence[Configuration],
    watcher: RaceWatcher | None,
) -> RaceEnd:
    """Plan the race where time decides, and run it; how it ended."""
    try:
        course.judge_base()
        if choice.open and math.isfinite(limits.deadline):
            course.enter(candidates[:_MEASURED])
            speed = course.measure()
            left = limits.deadline - time.monotonic()
            course.settle_on(choice.within(fits_seconds(left, speed)))
        entered = candidates[: course.plan.count]
        if watcher:
            watcher.planned(course.plan, entered)
        course.enter(entered)
        course.run(watcher)
    except KeyboardInterrupt:
        return "interrupted"
    except OutOfBudget:
        return "out of budget"
    except NobodyLeft:
        return "nobody left"
    return "finished"


def _data(job: Job, template: Template) -> TaskData:
    """The rows that all configurations share. Raises UsageError where none are held out."""
    data = task_data(job, template)
    if not data.held_out:
        raise _nothing_held_out()
    return data


def _check(job: Job, configurations: Sequence[Configuration]) -> TrainOptions:
    """Refuse what can't be raced, before anything is loaded. The options that all share."""
    shared = [entrant_job(job, item, TrainOptions().epochs) for item in configurations]
    for item in shared:
        item.options()
    given = replace(shared[0], task=job.task, set={**shared[0].set, **job.set})
    check_jobs([given])
    options, _ = given.options()
    if job.held_out is None and not options.held_out:
        raise _nothing_held_out()
    return options


def _store(
    run: Run,
    workspace: Workspace,
    base: Base,
    job: Job,
    course: Course,
    best: Entrant,
    end: RaceEnd,
    began: float,
    recorder: RunRecorder,
) -> Raced:
    """The best as the task's next version, and the ladder beside the run."""
    places = ranked(course.places)
    learner, configuration = best.learner, best.place.configuration
    learner.job = replace(learner.job, task=job.task)
    about = {
        "configurations": len(places),
        "number": configuration.number,
        "settings": dict(configuration.settings),
        "epochs": course.plan.epochs,
        "judged_rows": len(learner.data.held_out),
        "tokens": course.tokens,
        "judged_tokens": course.judged_tokens,
        "end": end,
    }
    base_loss = course.base_loss
    store = AdapterStore(workspace)
    stored = store_once(store, base, run, learner, base_loss, race=about)
    try:
        facts = {"task": job.task, "base_eval_loss": base_loss, **about}
        write_ladder(run.path / "ladder.json", places, **facts)
        draw_ladder(run.path / "ladder.png", places, base_loss)
    except OSError as error:  # a full disk costs no more than the picture
        recorder.noted(_not_drawn(run, error), task=job.task)
    seconds = time.monotonic() - began
    return Raced(
        run=run,
        adapter=stored,
        places=tuple(places),
        plan=course.plan,
        end=end,
        base_loss=base_loss,
        tokens=course.tokens,
        judged_tokens=course.judged_tokens,
        seconds=seconds,
    )


def _config(
    job: Job,
    base: Base,
    budget: Budget,
    plan: RacePlan,
    configurations: Sequence[Configuration],
) -> dict[str, Any]:
    """What the run was asked for, and what was chosen."""
    entered = configurations[: plan.count]
    entrants = [entrant_job(job, item, plan.epochs) for item in entered]
    config = {
        "race": {
            "task": job.task,
            "budget": budget.text,
            "configurations": plan.count,
            "epochs": plan.epochs,
            "rungs": [{"share": rung.share, "keep": rung.keep} for rung in plan.ladder],
            "judged_rows": plan.judged_rows,
        },
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "precision": base.precision.text,
        "folder": str(Path.cwd()),
        "jobs": [
            {
                "task": entrant.task,
                "data": str(entrant.data),
                "held_out": None if entrant.held_out is None else str(entrant.held_out),
                "method": entrant.method,
                "instruction": entrant.instruction,
                "template": entrant.template,
                "columns": dict(entrant.columns),
                "encoding": entrant.encoding,
                "skip_bad": entrant.skip_bad,
                "seed": entrant.seed,
                "set": dict(entrant.set),
            }
            for entrant in entrants
        ],
    }
    plain: dict[str, Any] = yaml.safe_load(
        yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    )
    return plain


def _not_drawn(run: Run, error: OSError) -> str:
    reason = error.strerror or str(error)
    return say(
        f"The ladder of race {run.id} can't be written: {reason}. Its winner is stored.",
        f"无法写出竞赛 {run.id} 的排名：{reason}。优胜者已保存。",
    )


def _nothing_held_out() -> UsageError:
    return UsageError(
        say(
            "A race is judged by held-out rows, and there are none.",
            "竞赛需要用留出数据评判，但没有留出数据。",
        ),
        say(
            "Set held_out above 0, or give a file with --held-out.",
            "请将 held_out 设为大于 0，或用 --held-out 指定文件。",
        ),
    )


def _nothing_kept(run: Run) -> Interrupted:
    return Interrupted(
        say(
            f"Race {run.id} was interrupted before its best could be kept.",
            f"竞赛 {run.id} 在保存最佳结果之前被中断。",
        ),
        say("Start it again with onebase race.", "请用 onebase race 重新开始。"),
    )
