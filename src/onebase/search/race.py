"""A race: many configurations of one task are trained together on one base, and the best is stored."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from onebase.adapters.experts import unchanged_experts
from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.identity import as_yaml_reads, base_config
from onebase.runs.interruption import Interrupted
from onebase.runs.observer import JobStart, Observer
from onebase.runs.render_date import local_time
from onebase.runs.run import Run
from onebase.runs.session import RunSession, run_session
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
from onebase.search.candidate import Candidate, candidate_job
from onebase.search.candidate_training import CandidateTraining
from onebase.search.continuing import Continuing
from onebase.search.history import History
from onebase.search.leaderboard import (
    Entry,
    draw_leaderboard,
    plain_leaderboard,
    ranked,
    write_leaderboard,
)
from onebase.search.space import Configuration, Space, default_space
from onebase.search.successive_halving import NobodyLeft, SuccessiveHalving
from onebase.training.job import Job
from onebase.training.options import TrainOptions
from onebase.training.run_config import as_given
from onebase.training.stored_result import store_job, summary
from onebase.training.task_data import TaskData, task_data
from onebase.training.train import check_jobs, precision_for

RaceEnd = Literal["finished", "out of budget", "nobody left", "interrupted"]
# A time budget is planned by the speed of the first ones; a race has at least as many, if the space
# allows.
_MEASURED = 3


@dataclass(frozen=True)
class RaceResult:
    """The result of a race: the stored `adapter` of its best configuration, the `entries` of all
    configurations (best first), and how it ended. `tokens` were trained on, `evaluated_tokens` went
    through evaluations. `budget_used` is a share of the budget, None without one.
    """

    run: Run
    adapter: StoredAdapter
    entries: tuple[Entry, ...]
    plan: RacePlan
    end: RaceEnd
    base_loss: float | None
    tokens: int
    evaluated_tokens: int
    seconds: float
    budget_used: float | None = None

    @property
    def plot(self) -> Path:
        """The leaderboard as a picture."""
        return self.run.path / "ladder.png"

    @property
    def leaderboard(self) -> list[dict[str, Any]]:
        """The leaderboard in plain values, best first."""
        return plain_leaderboard(self.entries)


def race(
    job: Job,
    *,
    base: Base | None = None,
    workspace: Workspace | None = None,
    observer: Observer | None = None,
    space: Space | None = None,
    budget: Budget | None = None,
    count: int | None = None,
    data: TaskData | None = None,
    rendered_at: datetime | None = None,
) -> RaceResult:
    """Race configurations of `space` (else the default one) on `job`'s task by successive halving, train
    the finalists to the end, and store the best as the task's next version.

    `job.method` is ignored, and `job.set` holds for all configurations. Whichever of `count` and the
    job's epochs is not given is chosen by the `budget`, whose time begins with this call. What the
    planned race leaves of it goes to stopped configurations, which are continued to their ends; where
    there are none, to more epochs of the best, unless the job's epochs are given. When the budget is
    spent, and at Ctrl-C (which is not raised), the best so far is stored.

    With `data`, the race is on these rows, rendered at `rendered_at`: it trains on the one part and is
    judged by the other. Raises UsageError or DataError before the first step, OnebaseError when there is
    nothing to store.
    """
    began = time.monotonic()
    budget, space = budget or Budget(), space or default_space(fixed=list(job.set))
    most = len(space.configurations)
    configurations = space.first(most if count is None else count)
    options = _check(job, configurations, given=data)
    workspace = workspace or Workspace()
    jobs = [candidate_job(job, item, options.epochs) for item in configurations]
    base = base or Base.load(precision=precision_for(jobs, None))
    template = Template(
        base.tokenizer,
        kind=job.template,
        instruction=job.instruction,
        max_tokens=options.max_tokens,
        moment=rendered_at or local_time(),
    )
    if data is None:
        data = task_data(replace(jobs[0], task=job.task), template)
    else:
        data = data.named(job.task)
    assert template.moment is not None, "given above"
    if not data.held_out:
        raise _nothing_held_out()
    epochs = options.epochs if "epochs" in job.set else None
    size = Size.of(data, options.batch_size * options.accumulation)
    largest = partial(choose, size, most=most, count=count, epochs=epochs)
    plan = largest(fits=fits_tokens(budget.tokens) if budget.tokens else None)
    config = _config(job, base, budget, plan, configurations[: plan.count])
    history = History(observer)
    try:
        with run_session(
            config, base, workspace, job.seed, observer=history, resumable=False
        ) as run:
            limits = Limits(
                run.interruption,
                deadline=began + budget.seconds if budget.seconds else math.inf,
                tokens=budget.tokens or math.inf,
            )
            run.recorder.left_out(job.task, data.bad)
            methods = [item.method for item in configurations]
            for text in [*data.notes, *unchanged_experts(base, methods)]:
                run.note(text, task=job.task)
            training = CandidateTraining(
                base, job, data, template.moment, plan, run.recorder, history, limits
            )
            halving = SuccessiveHalving(training)
            planned = count is not None and epochs is not None
            end = _run(halving, None if planned else largest, limits, configurations, history)
            if end == "finished" and limits.limited:
                end = _continue(Continuing(halving, may_train_longer=epochs is None))
            raced = [*configurations[: halving.plan.count], *halving.longer]
            run.run.write_config(_config(job, base, budget, halving.plan, raced))
            if end == "interrupted" and not training.tokens:
                raise KeyboardInterrupt
            best = halving.best()
            result = _store(run, workspace, base, job, budget, halving, best, end, began)
            run.ending = "interrupted" if end == "interrupted" else "finished"
            run.summary = {
                "seconds": result.seconds,
                "adapters": [summary(result.adapter)],
                "end": end,
            }
    except Interrupted as stop:  # before the first step, or again while the best was stored
        raise _nothing_stored(stop) from stop
    return result


def _run(
    halving: SuccessiveHalving,
    largest: Callable[..., RacePlan] | None,
    limits: Limits,
    configurations: Sequence[Configuration],
    history: History,
) -> RaceEnd:
    """Run the race, and return how it ended. Where time decides and anything is left to choose, it is
    first planned again: `largest` returns the largest race that `fits`.
    """
    try:
        halving.evaluate_base()
        if largest is not None and math.isfinite(limits.deadline):
            halving.enter(configurations[:_MEASURED])
            speed = halving.measure_speed()
            seconds_left = limits.deadline - time.monotonic()
            halving.change_plan(largest(fits=fits_seconds(seconds_left, speed)))
        chosen = configurations[: halving.plan.count]
        history.started([_start(halving, chosen)])
        halving.enter(chosen)
        halving.run()
    except KeyboardInterrupt:
        return "interrupted"
    except OutOfBudget:
        return "out of budget"
    except NobodyLeft:
        return "nobody left"
    return "finished"


def _continue(continuing: Continuing) -> RaceEnd:
    """Spend what is left of the budget, and return how the race ended."""
    try:
        continuing.run()
    except KeyboardInterrupt:
        return "interrupted"
    except OutOfBudget:  # the planned race had its end before
        pass
    return "finished"


def _start(halving: SuccessiveHalving, configurations: Sequence[Configuration]) -> JobStart:
    """The race as observers get it before the first step."""
    plan = halving.expected()
    comma = say(", ", "、")
    methods = comma.join(dict.fromkeys(item.method for item in configurations))
    kept = comma.join(
        say(f"{rung.keep} at {share}", f"{share} 处 {rung.keep} 个")
        for rung, share in zip(plan.rungs, plan.shares, strict=True)
    )
    text = say(
        f"Racing {plan.count} configurations ({methods}) over {plan.epochs} epochs; they are reduced to "
        f"{kept} of the way. About {plan.trained:,} tokens to train on and {plan.evaluated:,} to "
        f"evaluate, {plan.share:.0%} of training all of them to the end.",
        f"{plan.count} 个配置竞赛（{methods}），共 {plan.epochs} 个 epoch；留下：全程 {kept}。预计训练 "
        f"{plan.trained:,} 个词元、评估 {plan.evaluated:,} 个词元，为全部训练到底的 {plan.share:.0%}。",
    )
    title = say("tokens", "词元")
    task = halving.task
    return JobStart(
        task, title, halving.training.tokens, plan.trained, unit="tokens", facts=(text,)
    )


def _check(
    job: Job, configurations: Sequence[Configuration], given: TaskData | None
) -> TrainOptions:
    """The options that all configurations share; `given` are the rows, where the job does not name them.
    Raises UsageError, before anything is loaded, for what can't be raced.
    """
    shared = [candidate_job(job, item, TrainOptions().epochs) for item in configurations]
    for item in shared:
        item.options()
    first = replace(shared[0], task=job.task, set={**shared[0].set, **job.set})
    check_jobs([first])
    options, _ = first.options()
    if given is None and job.held_out is None and not options.held_out:
        raise _nothing_held_out()
    return options


def _store(
    run: RunSession,
    workspace: Workspace,
    base: Base,
    job: Job,
    budget: Budget,
    halving: SuccessiveHalving,
    best: Candidate,
    end: RaceEnd,
    began: float,
) -> RaceResult:
    """Store the best as the task's next version, and the leaderboard in the run's folder."""
    entries = ranked(halving.entries)
    state, configuration = best.state, best.entry.configuration
    state.job = replace(state.job, task=job.task)
    training, seconds = halving.training, time.monotonic() - began
    used = budget.used(training.tokens, seconds)
    facts = {
        "configurations": len(entries) - len(halving.longer),
        "number": configuration.number,
        "settings": dict(configuration.settings),
        "epochs": state.options.epochs,
        "judged_rows": len(state.data.held_out),
        "tokens": training.tokens,
        "judged_tokens": training.evaluated_tokens,
        "budget": budget.text,
        "budget_used": used,
        "continued": sum(entry.continued_from is not None for entry in entries),
        "end": end,
    }
    base_loss, folder = halving.base_loss, run.run.path
    stored = store_job(workspace, base, run.run, state, base_loss, race=facts)
    try:
        about = {"task": job.task, "base_eval_loss": base_loss, **facts}
        write_leaderboard(folder / "ladder.json", entries, **about)
        draw_leaderboard(folder / "ladder.png", entries, base_loss)
    except OSError as error:  # a full disk costs no more than the picture
        run.note(_not_drawn(run.run, error), task=job.task)
    return RaceResult(
        run=run.run,
        adapter=stored,
        entries=tuple(entries),
        plan=halving.plan,
        end=end,
        base_loss=base_loss,
        tokens=training.tokens,
        evaluated_tokens=training.evaluated_tokens,
        seconds=seconds,
        budget_used=used,
    )


def _config(
    job: Job,
    base: Base,
    budget: Budget,
    plan: RacePlan,
    configurations: Sequence[Configuration],
) -> dict[str, Any]:
    """The config of the run, with the plan that was chosen."""
    candidates = [candidate_job(job, item, plan.epochs) for item in configurations]
    return as_yaml_reads(
        {
            "race": {
                "task": job.task,
                "budget": budget.text,
                "configurations": plan.count,
                "epochs": plan.epochs,
                "rungs": [{"share": rung.share, "keep": rung.keep} for rung in plan.rungs],
                "judged_rows": plan.evaluation_rows,
            },
            **base_config(base),
            "jobs": [as_given(candidate) for candidate in candidates],
        }
    )


def _not_drawn(run: Run, error: OSError) -> str:
    reason = error.strerror or str(error)
    return say(
        f"The leaderboard of race {run.id} can't be written: {reason}. Its winner is stored.",
        f"无法写出竞赛 {run.id} 的排行榜：{reason}。优胜者已保存。",
    )


def _nothing_held_out() -> UsageError:
    return UsageError(
        say(
            "A race needs held-out rows for evaluation, and there are none.",
            "竞赛需要用留出数据评判，但没有留出数据。",
        ),
        say(
            "Set held_out above 0, or name a file with --held-out.",
            "请将 held_out 设为大于 0，或用 --held-out 指定文件。",
        ),
    )


def _nothing_stored(stop: Interrupted) -> Interrupted:
    return Interrupted(
        say(
            f"{stop.message} Its best configuration had not been stored yet.",
            f"{stop.message}最佳结果尚未保存。",
        ),
        say("Start it again with onebase race.", "请用 onebase race 重新开始。"),
    )
