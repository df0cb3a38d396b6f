"""`onebase demo`: five tasks learned together, the same prompts before and after."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import onebase.demo
from onebase.adapters.store import StoredAdapter
from onebase.cli.session import (
    BaseOption,
    JsonOption,
    LangOption,
    Session,
    WorkspaceOption,
    begin,
    note,
)
from onebase.cli.training import load_base, report_line, run_training
from onebase.data.formats import load_dataset
from onebase.engine.engine import Answer, Engine
from onebase.engine.pool import BASE_TASK
from onebase.engine.sampling import Sampling
from onebase.errors import unknown
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import DEFAULT_BASE, lasting_name
from onebase.runs.run import RunStore
from onebase.training.job import Job, read_jobs
from onebase.training.stored_result import summary


def demo_command(
    data: Annotated[str, typer.Option(help="en or zh: the language of the demo's data.")] = "en",
    base: BaseOption = None,
    again: Annotated[bool, typer.Option("--again", help="Train even if it is done.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Learn five tasks together on one base and compare answers before and after."""
    session = begin(workspace, as_json, lang)
    tasks = read_jobs(demo_folder(data) / "tasks.yaml")
    jobs, chosen = tasks.jobs, base or tasks.base or DEFAULT_BASE
    if data == "zh" and chosen == DEFAULT_BASE:
        note(
            say(
                f"{DEFAULT_BASE} knows little Chinese: expect poor answers. A base that does, such as "
                "gemma3-270m, goes with --base.",
                f"{DEFAULT_BASE} 几乎不懂中文，回答会很差。请用 --base 换成懂中文的基座，例如 gemma3-270m。",
            )
        )
    stored = [] if again else finished(session, jobs, chosen)
    session.workspace.require_writable()
    loaded = load_base(chosen, tasks.precision)
    if stored:
        note(
            say(
                "Already trained; nothing is done twice (--again repeats it).",
                "已经训练过，不再重复（--again 可重新训练）。",
            )
        )
    else:
        stored = run_training(session, jobs, loaded)
    note(say("Answering the same prompts before and after …", "用同样的提示对比训练前后的回答 …"))
    before, after = answers(loaded, jobs, stored)
    report = session.workspace.runs / stored[0].record["run"] / "report.md"
    report.write_text(_report(stored, before, after), encoding="utf-8")
    session.show(
        {
            "run": stored[0].record["run"],
            "adapters": [summary(item) for item in stored],
            "before": [asdict(item) for item in before],
            "after": [asdict(item) for item in after],
            "report": str(report),
        },
        _report(stored, before, after),
        say(f"Adapters: {session.workspace.adapters}", f"适配器：{session.workspace.adapters}"),
        say(f"Report:   {report}", f"报告：{report}"),
        say(
            f"Next:     {sys.argv[0]} chat --task support",
            f"下一步：{sys.argv[0]} chat --task support",
        ),
    )


def demo_folder(name: str) -> Path:
    """Where the demo's data of a language is. Raises UsageError."""
    root = Path(onebase.demo.__file__).parent
    if name not in ("en", "zh"):
        raise unknown("data set of the demo", "演示数据", name, ["en", "zh"])
    return root / name


def finished(session: Session, jobs: Sequence[Job], base: str) -> list[StoredAdapter]:
    """The adapters of an earlier demo with these jobs on this base, or none."""
    own = lasting_name(base)
    for run in reversed(RunStore(session.workspace).list()):
        same = [(job["task"], job["data"], job["method"]) for job in run.config.get("jobs", [])]
        wanted = [(job.task, str(job.data), job.method) for job in jobs]
        if run.status == "finished" and same == wanted and run.config.get("base") == own:
            tasks = set(session.store.tasks())
            stored = [
                item
                for job in jobs
                if job.task in tasks
                for item in session.store.list(job.task)
                if item.record.get("run") == run.id
            ]
            if len(stored) == len(jobs):
                return stored
    return []


def answers(
    base: Base, jobs: Sequence[Job], stored: Sequence[StoredAdapter]
) -> tuple[list[Answer], list[Answer]]:
    """The first held-out prompt of every task, answered by the base with the instruction alone
    and by the task's adapter: before and after, all in one mixed batch.
    """
    engine = Engine(base, stored)
    requests: list[tuple[str, Any]] = []
    for job in jobs:
        assert job.held_out is not None
        prompt = load_dataset(job.held_out).examples[0].input
        requests.append((job.task, prompt))
        name = f"{BASE_TASK}:{job.task}"
        engine.tasks.load_bare(name, job.instruction)
        requests.append((name, prompt))
    results = engine.generate(requests, Sampling(max_tokens=72))
    return results[1::2], results[0::2]


def _report(
    stored: Sequence[StoredAdapter], before: Sequence[Answer], after: Sequence[Answer]
) -> str:
    lines = [say("# Five tasks on one base", "# 一个基座上的五个任务"), ""]
    for item, old, new in zip(stored, before, after, strict=True):
        lines += [
            f"## {report_line(item)}",
            "",
            say("before:", "训练前："),
            _quoted(old.text),
            say("after:", "训练后："),
            _quoted(new.text),
            "",
        ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])
