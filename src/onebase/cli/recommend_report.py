"""A recommendation from a workspace's comparisons, and how a person reads it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onebase.adapters.methods import METHODS
from onebase.adapters.workspace import Workspace
from onebase.cli.session import Session, note
from onebase.cli.units import byte_count, settings_text
from onebase.compare.planned_arm import machine
from onebase.compare.recommend.limits import Limits
from onebase.compare.recommend.next_command import Asked, changed_settings
from onebase.compare.recommend.recommend import recommend
from onebase.compare.recommend.recommendation import PlannedCost, Question, Recommendation
from onebase.compare.record import FILE, load
from onebase.compare.result import Comparison
from onebase.errors import CorruptFileError, OnebaseError, UsageError
from onebase.language import say
from onebase.model.cache import cached_models
from onebase.model.fetch import DEFAULT_BASE
from onebase.planning.plan import plan
from onebase.runs.resume import path_from
from onebase.runs.run import RunStore
from onebase.search.budget import Budget
from onebase.training.job import Job


def limits_of(memory: str | None, time: str | None, adapter_size: str | None) -> Limits:
    """The limits that the options give. Raises UsageError."""
    return Limits(
        peak_memory_bytes=None if memory is None else byte_count("memory", memory),
        seconds=None if time is None else _seconds(time),
        adapter_bytes=None if adapter_size is None else byte_count("adapter-size", adapter_size),
    )


def _seconds(text: str) -> float:
    try:
        seconds = Budget.read(text).seconds
    except UsageError:
        seconds = None
    if seconds is None:  # or a number of tokens
        raise UsageError(
            say(f"--time {text!r} is not a time.", f"--time {text!r} 不是时间。"),
            say("Write it like 90s, 5m or 1h.", "请写成 90s、5m 或 1h 的形式。"),
        )
    return seconds


def recommended(
    session: Session,
    limits: Limits,
    preference: str,
    *,
    task: str | None,
    base: str | None,
    data: str | None,
) -> Recommendation:
    """What the workspace's comparisons recommend."""
    known = _trained_before(session.workspace, task) if data is None else None
    if data is not None:
        known = Asked(task or "TASK", data, base)
    question = Question(
        task, limits, preference, base, known, machine=machine(), workspace=session.workspace
    )

    def planner(asked: Asked, methods: Sequence[str]) -> PlannedCost | None:
        return _estimate(asked, methods, session.workspace)

    return recommend(_comparisons(session.workspace), question, planner)


def _comparisons(workspace: Workspace) -> list[Comparison]:
    """Every finished comparison of a workspace, newest last; damaged ones are named and left out."""
    comparisons = []
    for file in sorted(workspace.runs.glob(f"*/{FILE}")):
        try:
            comparisons.append(load(file.parent))
        except CorruptFileError as damaged:
            note(damaged.message)
    return comparisons


def _trained_before(workspace: Workspace, task: str | None) -> Asked | None:
    """The data of a task (None: any) as its newest run names them; None where there is none."""
    for run in reversed(RunStore(workspace).list()):
        try:
            config = run.config
        except CorruptFileError as damaged:
            note(damaged.message)
            continue
        for job in _jobs(config):
            if task in (None, job["task"]):
                data = path_from(config, job["data"])
                read = {key: value for key, value in job.items() if key != "set"}
                return Asked(job["task"], data, config.get("base"), job=read)
    return None


def _jobs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The supervised jobs of a run. Those of a race are named by number: they stand for its task."""
    jobs = config.get("jobs") or []
    if "race" in config:
        yield from [{**job, "task": config["race"]["task"]} for job in jobs[:1]]
    else:
        yield from jobs
    if "compare" in config:
        yield config["job"]


def _estimate(asked: Asked, methods: Sequence[str], workspace: Workspace) -> PlannedCost | None:
    """What plan estimates for these methods together; None, and a note why, where it cannot.

    qlora is left out beside others: it learns on a base of its own precision.
    """
    names = tuple(methods or METHODS)
    together = tuple(name for name in names if name != "qlora") or names
    base = asked.base or DEFAULT_BASE
    if not _at_hand(base):
        note(
            say(
                f"No estimate: {base} is not on this machine yet. Fetch it with onebase model pull {base}.",
                f"无法估计：本机还没有 {base}。请用 onebase model pull {base} 获取。",
            )
        )
        return None
    read = {key: asked.job[key] for key in _READ if key in asked.job}
    jobs = [Job(f"compared-{name}", asked.data, name, **read) for name in together]
    note(
        say(
            f"Estimating what the comparison takes: loading {base} and trying a few steps …",
            f"正在估计对比所需的资源：加载 {base} 并试训练几步 …",
        )
    )
    try:
        made = plan(jobs, base=base, precision=asked.precision, workspace=workspace)
    except OnebaseError as error:
        note(say(f"No estimate: {error.message}", f"无法估计：{error.message}"))
        return None
    return PlannedCost(together, made.seconds, made.memory_bytes)


def _at_hand(base: str) -> bool:
    """Whether a base can be loaded without a download."""
    return Path(base).expanduser().exists() or base in [path.name for path in cached_models()]


# The fields of a job that say how its data are read.
_READ = ("instruction", "held_out", "template", "columns", "encoding", "skip_bad")


def show_recommendation(session: Session, made: Recommendation) -> None:
    """Print a recommendation: the method and its settings, the reasons, the next command."""
    if made.method is None:
        head = say("No recommendation.", "无法给出推荐。")
    else:
        changed = settings_text(changed_settings(made.method, made.settings))
        settings = changed or say("default settings", "默认设置")
        asked = say(f" ({settings})", f"（{settings}）")
        head = say(f"Recommended: {made.method}", f"推荐：{made.method}") + asked
    session.show(
        made.to_dict(),
        head,
        *(f"- {reason}" for reason in made.reasons),
        say(f"Next: {made.next}", f"下一步：{made.next}"),
    )
