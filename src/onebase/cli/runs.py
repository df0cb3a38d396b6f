"""`onebase runs`: past trainings."""

from typing import Annotated, Any

import typer

from onebase.cli.options import SessionFlags
from onebase.cli.session import begin, note
from onebase.language import say
from onebase.runs.run import Run, RunStore

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
    run: Annotated[str, typer.Argument(help="The run's id, or its beginning.")],
    *,
    flags: SessionFlags,
) -> None:
    """One run: its exact configuration, its curves, how it ended."""
    session = begin(flags)
    found = RunStore(session.workspace).get(run)
    metrics = found.metrics()
    result = {
        "run": found.id,
        "status": found.status,
        "resumable": found.resumable,
        "path": str(found.path),
        "config": found.config,
        "metrics": metrics,
        "summary": found.summary,
    }
    lines = [f"{found.id}: {found.status}  ({found.path})"]
    for job in found.config.get("jobs", []):
        lines.append(f"{job['task']}: {job['method']} {job['set']}")
    if "align" in found.config:
        lines += _aligned(found, metrics)
    lines += [
        f"  {item['task']} step {item.get('step', 0)}: held-out loss "
        f"{item.get('eval_loss', item.get('base_eval_loss')):.4f}"
        for item in metrics
        if "task" in item and ("eval_loss" in item or "base_eval_loss" in item)
    ]
    lines += [f"  {item['note']}" for item in metrics if "note" in item]
    session.show(result, *lines)


def _aligned(run: Run, metrics: list[dict[str, Any]]) -> list[str]:
    """A run of `onebase align`: what was asked for, its judgements, its files."""
    job = run.config["job"]
    lines = [f"{job['task']}: {run.config['align']} {job['set']}"]
    for item in metrics:
        judged = {key: value for key, value in item.items() if key.startswith("eval_")}
        if judged:
            numbers = ", ".join(f"{key} {value:.4f}" for key, value in judged.items())
            lines.append(f"  {say('step', '步')} {item['step']}: {numbers}")
    files = [run.path / name for name in ("curves.png", "samples.jsonl")]
    return lines + [f"  {file}" for file in files if file.exists()]
