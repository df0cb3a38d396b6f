"""`onebase runs`: past trainings."""

from typing import Annotated, Any

import typer

from onebase.cli.options import SessionFlags
from onebase.cli.session import begin, note
from onebase.language import say
from onebase.runs.run import RunStore

runs_app = typer.Typer(help="Past runs.")


@runs_app.command("list")
def list_command(*, flags: SessionFlags) -> None:
    """Every run, newest last."""
    session = begin(flags)
    rows: list[dict[str, Any]] = []
    for run in RunStore(session.workspace).list():
        config = run.config
        raced = config.get("race")
        tasks = [raced["task"]] if raced else [job["task"] for job in config.get("jobs", [])]
        if "align" in config:
            tasks = [config["job"]["task"]]
        row = {"run": run.id, "status": run.status, "resumable": run.resumable, "tasks": tasks}
        if raced:
            row["race"] = raced["configurations"]
        if "align" in config:
            row["align"] = config["align"]
        rows.append(row)
    session.table(
        {"runs": rows},
        ["run", "status", "tasks"],
        [[row["run"], row["status"], ", ".join(row["tasks"]) + _kind(row)] for row in rows],
    )
    if waiting := [row["run"] for row in rows if row["resumable"]]:
        note(
            say(
                f"Go on with: onebase resume {waiting[-1]}",
                f"继续训练：onebase resume {waiting[-1]}",
            )
        )


def _kind(row: dict[str, Any]) -> str:
    """What the run was, where it was no training from examples."""
    if "align" in row:
        return f" ({row['align']})"
    count = row.get("race")
    return say(f" (race of {count})", f"（{count} 个配置的竞赛）") if count else ""


@runs_app.command("show")
def show_command(
    run: Annotated[str, typer.Argument(help="The run's id, or the beginning of it.")],
    *,
    flags: SessionFlags,
) -> None:
    """One run: what was asked for, its losses, how it ended."""
    from onebase.cli.run_report import run_lines

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
