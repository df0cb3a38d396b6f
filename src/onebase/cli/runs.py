"""`onebase runs`: past runs."""

from typing import Annotated, Any

import typer

from onebase.cli.options import SessionFlags
from onebase.cli.run_report import run_lines, status_name
from onebase.cli.session import begin, note
from onebase.language import say
from onebase.quantity import listed
from onebase.runs.resume import resume_command
from onebase.runs.run import RunStore

runs_app = typer.Typer(help="Past runs.")


@runs_app.command("list")
def list_command(*, flags: SessionFlags) -> None:
    """List all runs, the newest last."""
    session = begin(flags)
    rows: list[dict[str, Any]] = []
    runs = RunStore(session.workspace).list()
    for run in runs:
        config = run.config
        race = config.get("race")
        tasks = [race["task"]] if race else [job["task"] for job in config.get("jobs", [])]
        if "align" in config or "compare" in config:
            tasks = [config["job"]["task"]]
        row = {"run": run.id, "status": run.status, "resumable": run.resumable, "tasks": tasks}
        if race:
            row["race"] = race["configurations"]
        if "align" in config:
            row["align"] = config["align"]
        if "compare" in config:
            row["compare"] = config["compare"]["methods"]
        rows.append(row)
    session.table(
        {"runs": rows},
        [say("run", "训练记录"), say("status", "状态"), say("tasks", "任务")],
        [
            [row["run"], status_name(row["status"]), listed(row["tasks"]) + _kind(row)]
            for row in rows
        ],
        empty=say("No runs yet.", "暂无训练记录。"),
    )
    if resumable := [run for run in runs if run.resumable]:
        command = resume_command(resumable[-1], session.workspace)
        note(say(f"Continue the last one: {command}", f"继续最近中断的训练：{command}"))


def _kind(row: dict[str, Any]) -> str:
    """The kind of a run, in brackets; empty for an ordinary training."""
    if "align" in row:
        return f" ({row['align']})"
    if "compare" in row:
        methods = len(row["compare"])
        return say(f" (comparison of {methods} methods)", f"（{methods} 种方法的对比）")
    count = row.get("race")
    return say(f" (race of {count})", f"（{count} 个配置的竞赛）") if count else ""


@runs_app.command("show")
def show_command(
    run: Annotated[str, typer.Argument(help="The run's id, or the beginning of it.")],
    *,
    flags: SessionFlags,
) -> None:
    """Show a run's jobs, losses and status."""
    session = begin(flags)
    shown = RunStore(session.workspace).get(run)
    metrics = shown.metrics()
    result = {
        "run": shown.id,
        "status": shown.status,
        "resumable": shown.resumable,
        "path": str(shown.path),
        "config": shown.config,
        "metrics": metrics,
        "summary": shown.summary,
    }
    if session.json:
        session.show(result)
    else:
        session.show(result, *run_lines(shown, metrics, session.workspace))
