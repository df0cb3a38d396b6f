"""Estimates of memory, time and disk for a training, from a dry run on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from onebase.adapters.full import FULL
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.engine.trunk import MEMORY_BYTES
from onebase.errors import CapacityError
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE, resolve
from onebase.model.precision import Precision, choose
from onebase.model.sizes import Sizes, sizes_of
from onebase.model.tokenizer import read_tokenizer
from onebase.planning.advice import FULL_BYTES, Pass, disk_advice, memory_advice
from onebase.planning.dry_run_process import run_dry_run
from onebase.planning.free_memory import free_disk, free_memory
from onebase.quantity import size
from onebase.runs.checkpointer import QUICK_SAVE, SAVING_SHARE
from onebase.training.job import Job
from onebase.training.task_data import task_data
from onebase.training.train import check_jobs, precision_for

Verdict = Literal["fits", "tight", "does not fit"]
# Above this share of what is free, the next program that is opened may not fit.
_TIGHT = 0.8


@dataclass(frozen=True)
class TaskPlan:
    """One job: its `trainable` parameters, also in percent of the base's, its optimizer `steps` (where
    nothing stops it early), and the size of its adapter. None: unknown.
    """

    task: str
    method: str
    trainable: int | None
    trainable_percent: float | None
    steps: int
    adapter_bytes: int | None


@dataclass(frozen=True)
class Plan:
    """The estimated peak of what a training takes, and whether that fits what is free now.

    `memory_bytes` is that of the whole process, on a GPU the memory of the device; `seconds` the time
    from the start of the command to its end, all epochs; `disk_bytes` the checkpoints and adapters.
    None: no dry run was possible, and `memory_bytes` is the least that the training takes. `measured` has
    the measurements of the dry run.
    """

    tasks: tuple[TaskPlan, ...]
    memory_bytes: int
    available_bytes: int
    seconds: float | None
    disk_bytes: int | None
    free_disk_bytes: int
    verdict: Verdict
    advice: tuple[str, ...]
    measured: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As `onebase plan --json` shows it."""
        return {**asdict(self), "advice": list(self.advice), "estimated": True}

    def error(self) -> CapacityError:
        """The error for a plan that does not fit."""
        disk = self.disk_bytes is not None and self.disk_bytes > self.free_disk_bytes
        if disk and self.memory_bytes <= self.available_bytes:
            need, free = size(self.disk_bytes or 0), size(self.free_disk_bytes)
            fact = say(
                f"It takes about {need} of disk, and {free} are free.",
                f"约需 {need} 磁盘空间，可用 {free}。",
            )
        else:
            need, free = size(self.memory_bytes), size(self.available_bytes)
            fact = say(
                f"It takes {self._about} {need} of memory, and {free} are free.",
                f"{self._about} {need} 内存，可用 {free}。",
            )
        return CapacityError(fact, " ".join(self.advice))

    @property
    def _about(self) -> str:
        if self.seconds is None:
            return say("at least", "至少需")
        return say("about", "约需")


def plan(
    jobs: Sequence[Job],
    *,
    base: str = DEFAULT_BASE,
    precision: str | None = None,
    workspace: Workspace | None = None,
) -> Plan:
    """Train a few steps of `jobs` together on `base`, and estimate what the whole training takes.

    Nothing is written into `workspace`. Raises what `train` would: UsageError, DataError,
    MissingBaseError, CorruptFileError.
    """
    check_jobs(jobs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held_in = precision_for(jobs, precision)
    stored = torch.float32 if device == "cpu" else torch.bfloat16
    chosen = choose(held_in, device=device, stored=stored)  # a wrong one, before any work
    sizes = sizes_of(resolve(base))
    free = FreeSpace(free_memory(device), free_disk((workspace or Workspace()).root))
    least = _at_least(jobs, chosen, sizes)
    if least > free.memory:
        return _untried(jobs, base, chosen, sizes, free, least)
    measured = run_dry_run(jobs, base=base, precision=held_in, limit=free_memory("cpu"))
    if "needed" in measured:
        needed = max(least, free.memory + 1, measured["needed"] if device == "cpu" else 0)
        return _untried(jobs, base, chosen, sizes, free, needed)
    return _estimated(jobs, chosen, sizes, free, measured)


@dataclass(frozen=True)
class FreeSpace:
    """Bytes that are free: `memory`, and `disk` where the workspace is."""

    memory: int
    disk: int


def _at_least(jobs: Sequence[Job], precision: Precision, sizes: Sizes) -> int:
    """The memory of the weights alone: those of the base, and of every copy that is trained."""
    copies = sum(job.method == FULL for job in jobs)
    return sizes.held_in(precision) + FULL_BYTES * copies * sizes.parameters


def _untried(
    jobs: Sequence[Job],
    base: str,
    precision: Precision,
    sizes: Sizes,
    free: FreeSpace,
    needed: int,
) -> Plan:
    """The plan of a training that does not fit, from sizes alone; it takes at least `needed` bytes."""
    tokenizer = read_tokenizer(resolve(base))
    return Plan(
        tasks=tuple(_untried_task(job, tokenizer, sizes) for job in jobs),
        memory_bytes=needed,
        available_bytes=free.memory,
        seconds=None,
        disk_bytes=None,
        free_disk_bytes=free.disk,
        verdict="does not fit",
        advice=tuple(memory_advice(jobs, precision, sizes, None)),
    )


def _untried_task(job: Job, tokenizer: Any, sizes: Sizes) -> TaskPlan:
    options, _ = job.options()
    template = Template(
        tokenizer, kind=job.template, instruction=job.instruction, max_tokens=options.max_tokens
    )
    data = task_data(job, template)
    steps = -(-len(data.train) // (options.batch_size * options.accumulation)) * options.epochs
    full = job.method == FULL
    return TaskPlan(
        job.task,
        job.method,
        sizes.parameters if full else None,
        100.0 if full else None,
        steps,
        None,
    )


def _estimated(
    jobs: Sequence[Job],
    precision: Precision,
    sizes: Sizes,
    free: FreeSpace,
    measured: dict[str, Any],
) -> Plan:
    memory, disk = _memory(measured), _disk(jobs, measured)
    over = max(memory / max(1, free.memory), disk / max(1, free.disk))
    verdict: Verdict = "fits" if over <= _TIGHT else "tight" if over <= 1 else "does not fit"
    advice = []
    if memory > _TIGHT * free.memory:
        advice += memory_advice(jobs, precision, sizes, _heaviest(measured))
    if disk > _TIGHT * free.disk:
        advice += disk_advice(jobs)
    return Plan(
        tasks=tuple(_task(item, measured, sizes) for item in measured["tasks"]),
        memory_bytes=memory,
        available_bytes=free.memory,
        seconds=seconds_of(measured, min(job.options()[0].save_seconds for job in jobs)),
        disk_bytes=disk,
        free_disk_bytes=free.disk,
        verdict=verdict,
        advice=tuple(advice),
        measured=measured,
    )


def _task(item: Mapping[str, Any], measured: Mapping[str, Any], sizes: Sizes) -> TaskPlan:
    trainable = item["trainable"]
    return TaskPlan(
        task=item["task"],
        method=item["method"],
        trainable=trainable,
        trainable_percent=100 * trainable / sizes.parameters if sizes.parameters else None,
        steps=item["steps"],
        adapter_bytes=measured["adapter_bytes"].get(item["task"]),
    )


def _memory(measured: Mapping[str, Any]) -> int:
    """The peak of the dry run, and what the frozen trunk keeps in addition for the other rows."""
    if measured["device"] == "cuda":
        return int(measured["memory"]["peak"])
    all_, tried = (
        min(MEMORY_BYTES, measured[key] * measured["trunk_token_bytes"])
        for key in ("trunk_tokens", "tried_trunk_tokens")
    )
    return int(measured["memory"]["peak"] + max(0, all_ - tried))


def _disk(jobs: Sequence[Job], measured: Mapping[str, Any]) -> int:
    """All checkpoints that are kept, one more that is being written, and the adapters."""
    limit = max(job.options()[0].save_limit for job in jobs)
    best = sum(item["state_bytes"] for item in measured["tasks"])
    stored = sum(measured["adapter_bytes"].values())
    return int((limit + 1) * (measured["checkpoint_bytes"] + best) + stored)


def seconds_of(measured: Mapping[str, Any], save_seconds: float) -> float:
    """The time of the whole training: that of the dry run, and, at the rates measured, that of the
    remaining steps, evaluations, trunk and checkpoints.
    """
    learning, tried = 0.0, 0.0
    for phase in measured["phases"]:
        seconds = phase["trial_seconds"]
        tokens = phase["trial_tokens"][: len(seconds)]
        timed = slice(phase["heavy"] if len(seconds) > phase["heavy"] else 0, None)
        learning += phase["tokens"] * sum(seconds[timed]) / max(1, sum(tokens[timed]))
        tried += sum(tokens) * sum(seconds[timed]) / max(1, sum(tokens[timed]))
    tasks = measured["tasks"]
    judged = sum(item["judged_tokens"] * item["epochs"] for item in tasks)
    bare = sum(item["base_judged_tokens"] for item in tasks)
    trunk = measured["trunk_seconds"] / max(1, measured["tried_trunk_tokens"])
    more = [
        learning - tried,
        _more(judged, measured["judged_tokens"]) * measured["judging_seconds"],
        _more(bare, measured["base_judged_tokens"]) * measured["base_judging_seconds"],
        (measured["trunk_tokens"] - measured["tried_trunk_tokens"]) * trunk,
        _saves(measured, learning, save_seconds) * (measured["saving_seconds"] or 0.0),
    ]
    return float(measured["seconds"] - measured["aside_seconds"] + sum(more))


def _more(all_: int, tried: int) -> float:
    """The part that was not tried, as a multiple of the part that was."""
    return (all_ - tried) / tried if tried else 0.0


def _saves(measured: Mapping[str, Any], learning: float, save_seconds: float) -> float:
    """The checkpoints that the dry run did not save: at evaluations, and in between by the clock."""
    evaluations: int = measured["evaluations"]
    between = evaluations * (learning / evaluations // save_seconds) if save_seconds else learning
    saves: float = evaluations + between - measured["tried_evaluations"]
    cost: float = measured["saving_seconds"] or 0.0
    if cost > QUICK_SAVE:
        saves = min(saves, SAVING_SHARE * learning / cost)
    return max(0.0, saves)


def _heaviest(measured: Mapping[str, Any]) -> Pass:
    top = max((phase["pass"] for phase in measured["phases"]), key=lambda item: item["tokens"])
    memory = measured["memory"]
    return Pass(top["tokens"], top["rows"], top["longest"], memory["peak"] - memory["built"])
