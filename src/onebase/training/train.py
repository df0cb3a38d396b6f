"""Training jobs together, from their data to versioned adapters in the workspace."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from onebase.adapters.full import save_full
from onebase.adapters.methods import parts_of
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.runs import Run
from onebase.adapters.store import AdapterStore, StoredAdapter, check_task_name
from onebase.adapters.workspace import Workspace
from onebase.engine.compiled import compiled
from onebase.errors import OnebaseError, UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.training.job import Job
from onebase.training.learner import Learner
from onebase.training.loop import Watcher, base_losses, train_together
from onebase.training.record import RunRecorder


def train(
    jobs: Sequence[Job],
    *,
    base: Base | None = None,
    workspace: Workspace | None = None,
    watcher: Watcher | None = None,
) -> list[StoredAdapter]:
    """Train every job together on one base and store each result as a new version.

    Everything about the jobs is checked before the first step. An interruption leaves the run
    marked so, and no adapter. Raises UsageError or DataError, and OnebaseError when a job diverged
    with nothing to keep (the others are stored).
    """
    check_jobs(jobs)
    workspace = workspace or Workspace()
    base = base or Base.load(precision=precision_for(jobs, None))
    learners = [Learner(job, base) for job in jobs]
    run = Run.create(
        workspace,
        {
            "base": base.name,
            "precision": base.precision.text,
            "jobs": [_job_config(job) for job in jobs],
        },
    )
    recorder = RunRecorder(run, watcher)
    began = time.perf_counter()
    trained = False
    try:
        before = base_losses(base, learners)
        recorder.base_judged(before)
        train_together(learners, recorder)
        trained = True
    except KeyboardInterrupt:
        run.finish("interrupted", {"seconds": time.perf_counter() - began})
        raise
    finally:
        if not trained and run.status == "running":
            run.finish("failed", {"seconds": time.perf_counter() - began})
    store = AdapterStore(workspace)
    seconds = time.perf_counter() - began
    lost = [learner.job.task for learner in learners if learner.diverged and not learner.best_step]
    stored = [
        _store(store, base, run, learner, before)
        for learner in learners
        if learner.job.task not in lost
    ]
    ending = {"seconds": seconds, "adapters": [summary(item) for item in stored], "diverged": lost}
    run.finish("failed" if lost else "finished", ending)
    if lost:
        raise _diverged(lost, stored)
    return stored


def _diverged(lost: Sequence[str], stored: Sequence[StoredAdapter]) -> OnebaseError:
    names = ", ".join(lost)
    kept = ", ".join(item.name for item in stored)
    return OnebaseError(
        say(
            f"The loss of {names} was no longer finite before its first evaluation, so there is "
            "nothing of it to keep.",
            f"{names} 的损失在第一次评估之前就已不是有限值，没有可保留的结果。",
        )
        + (say(f" Stored: {kept}.", f"已保存：{kept}。") if kept else ""),
        say("Lower its learning_rate and train it again.", "请减小 learning_rate 后重新训练。"),
    )


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
        if not 0 <= job.seed < 1 << 63:
            raise UsageError(
                say(f"seed={job.seed} is not valid.", f"seed={job.seed} 无效。"),
                say("Give a whole number from 0 to 2**63 - 1.", "请给出 0 到 2**63 - 1 的整数。"),
            )
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


def summary(adapter: StoredAdapter) -> dict[str, Any]:
    """A stored adapter as `onebase train --json` shows it."""
    metrics = adapter.record["metrics"]
    return {
        "task": adapter.task,
        "version": adapter.version,
        "method": adapter.record["method"],
        "path": str(adapter.path),
        **metrics,
    }


def _store(
    store: AdapterStore, base: Base, run: Run, learner: Learner, before: dict[str, float]
) -> StoredAdapter:
    job = learner.job
    judged = bool(learner.data.held_out)

    def write(folder: Path) -> None:
        if learner.adapter.full is not None:
            save_full(learner.base, folder)
            return
        save_adapter(learner.adapter, folder, base)
        compiled(base, learner.adapter, folder)  # kept beside the weights, so loading is quick

    return store.add(
        job.task,
        write,
        {
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "precision": base.precision.text,
            "method": learner.adapter.method,
            "options": learner.adapter.options,
            "template": learner.template.config(),
            "data": str(job.data),
            "data_sha256": learner.data.dataset.sha256,
            "labels": list(learner.data.dataset.labels),
            "run": run.id,
            "metrics": {
                "trainable": learner.adapter.trainable(),
                "eval_loss": learner.best_loss if judged and learner.best_step else None,
                "base_eval_loss": before.get(job.task),
                "best_step": learner.best_step,
                "steps": learner.step,
                "diverged": learner.diverged,
                "truncated": learner.data.truncated,
                "seconds": learner.seconds,
                "tokens_per_second": learner.tokens / max(learner.seconds, 1e-9),
            },
        },
    )


def _one_or_all(values: dict[str, float]) -> float | dict[str, float]:
    """A value by method; alone where there is one method."""
    return values if len(values) > 1 else next(iter(values.values()))


def _job_config(job: Job) -> dict[str, Any]:
    options, own = job.options()
    return {
        "task": job.task,
        "data": str(job.data),
        "held_out": None if job.held_out is None else str(job.held_out),
        "method": job.method,
        "instruction": job.instruction,
        "template": job.template,
        "columns": dict(job.columns),
        "skip_bad": job.skip_bad,
        "seed": job.seed,
        "set": {
            **options.model_dump(),
            "learning_rate": _one_or_all(job.rates()),
            "beta2": _one_or_all(job.beta2s()),
            **own,
        },
        "torch": str(torch.__version__),
    }
