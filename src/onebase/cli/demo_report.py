"""The demo's comparison and its report."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onebase.demo
from onebase.adapters.store import StoredAdapter
from onebase.cli.session import Session
from onebase.cli.training import report_line
from onebase.data.formats import load_dataset
from onebase.engine.engine import Answer, Engine
from onebase.engine.pool import BASE_TASK
from onebase.engine.sampling import Sampling
from onebase.errors import unknown
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import lasting_name
from onebase.runs.run import RunStore
from onebase.training.job import Job
from onebase.training.stored_result import summary


def demo_folder(name: str) -> Path:
    """The folder of the demo's data in a language. Raises UsageError."""
    root = Path(onebase.demo.__file__).parent
    if name not in ("en", "zh"):
        raise unknown("data set of the demo", "演示数据", name, ["en", "zh"])
    return root / name


def finished_demo(session: Session, jobs: Sequence[Job], base: str) -> list[StoredAdapter]:
    """The adapters of an earlier demo with these jobs on this base; empty without one."""
    base_name = lasting_name(base)
    for run in reversed(RunStore(session.workspace).list()):
        run_jobs = [(job["task"], job["data"], job["method"]) for job in run.config.get("jobs", [])]
        demo_jobs = [(job.task, str(job.data), job.method) for job in jobs]
        if (
            run.status == "finished"
            and run_jobs == demo_jobs
            and run.config.get("base") == base_name
        ):
            adapters = session.store.list()
            stored = {item.task: item for item in adapters if item.record.get("run") == run.id}
            if all(job.task in stored for job in jobs):
                return [stored[job.task] for job in jobs]
    return []


def answers_before_and_after(
    base: Base, jobs: Sequence[Job], stored: Sequence[StoredAdapter]
) -> tuple[list[Answer], list[Answer]]:
    """The answers to each task's first held-out prompt: by the base with the instruction alone, and by the
    task's adapter. All are generated in one mixed batch.
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


def show_demo(
    session: Session,
    stored: Sequence[StoredAdapter],
    before: Sequence[Answer],
    after: Sequence[Answer],
) -> None:
    """Write the report into the run's folder and print it."""
    text = _report(stored, before, after)
    file = session.workspace.runs / stored[0].record["run"] / "report.md"
    file.write_text(text, encoding="utf-8")
    session.show(
        {
            "run": stored[0].record["run"],
            "adapters": [summary(item) for item in stored],
            "before": [asdict(item) for item in before],
            "after": [asdict(item) for item in after],
            "report": str(file),
        },
        text,
        say(f"Adapters: {session.workspace.adapters}", f"适配器：{session.workspace.adapters}"),
        say(f"Report:   {file}", f"报告：{file}"),
        say(
            f"Next:     {sys.argv[0]} chat --task support{session.workspace.option}",
            f"下一步：{sys.argv[0]} chat --task support{session.workspace.option}",
        ),
    )


def _report(
    stored: Sequence[StoredAdapter], before: Sequence[Answer], after: Sequence[Answer]
) -> str:
    lines = [say("# Five tasks on one base", "# 一个基座上的五个任务"), ""]
    for item, base_answer, answer in zip(stored, before, after, strict=True):
        lines += [
            f"## {report_line(item)}",
            "",
            say("before:", "训练前："),
            _quoted(base_answer.text),
            say("after:", "训练后："),
            _quoted(answer.text),
            "",
        ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])
