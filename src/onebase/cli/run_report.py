"""The report on a run, for `runs show`: its jobs, losses and notes, and the next commands."""

import json
from collections.abc import Sequence
from statistics import mean
from typing import Any

from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.cli.adapter_report import command_to_use
from onebase.cli.measurements import name_of
from onebase.cli.units import aligned, moment, options_text, settings_text, wrapped
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.quantity import duration, listed
from onebase.runs.resume import resume_command
from onebase.runs.run import Run


def run_lines(run: Run, metrics: Sequence[dict[str, Any]], workspace: Workspace) -> list[str]:
    """The whole report."""
    config = run.config
    lines = [_status(run)]
    base, precision = config.get("base"), config.get("precision")
    lines += [
        say(f"Base: {base} in {precision}.", f"基座：{base}，精度 {precision}。"),
        say(f"Folder: {run.path}", f"目录：{run.path}"),
    ]
    if "align" in config:
        lines += _job_lines(
            config["job"], say(f"align {config['align']}", f"对齐 {config['align']}")
        )
        lines += _alignment_losses(metrics)
    elif "compare" in config:
        lines += _comparison(run)
    elif run.is_race:
        lines += _race(run, metrics)
    else:
        for job in config.get("jobs", []):
            lines += _job_lines(job, str(job["method"]))
            lines += _training_losses([item for item in metrics if item.get("task") == job["task"]])
    lines += _notes(metrics)
    names = ("curves.png", "samples.jsonl", "ladder.png", "report.md", "report/report.html")
    if files := [run.path / name for name in names if (run.path / name).exists()]:
        lines += [say("Files:", "文件："), *(f"  {file}" for file in files)]
    return lines + _next_steps(run, workspace)


def status_name(status: str) -> str:
    """The name of a run's status in the current language."""
    return {
        "running": say("running", "运行中"),
        "finished": say("finished", "已完成"),
        "interrupted": say("interrupted", "已中断"),
        "failed": say("failed", "失败"),
    }[status]


def _status(run: Run) -> str:
    """The run's status, its duration, and why it ended."""
    seconds, ended = run.summary.get("seconds"), run.summary.get("ended")
    after = (
        say(f" after {duration(seconds)}", f"，用时 {duration(seconds)}")
        if isinstance(seconds, int | float)
        else ""
    )
    when = say(f" ({moment(ended)})", f"（{moment(ended)}）") if ended else ""
    status = status_name(run.status)
    reason = run.summary.get("reason")
    cause = say(f": {reason}", f"：{reason}") if reason else ""
    return say(f"Run {run.id}: {status}", f"训练 {run.id}：{status}") + after + when + cause


def _job_lines(job: dict[str, Any], kind: str) -> list[str]:
    """A job's data and settings. `kind` is its method or its alignment algorithm."""
    settings = {
        **{
            key: value
            for key, value in job.get("set", {}).items()
            if key not in job.get("options", {})
        },
        "seed": job.get("seed"),
    }
    method = job.get("method") if kind != job.get("method") else None
    rows = [
        (say("method", "方法"), method),
        (say("starts from", "起点"), job.get("start")),
        (say("data", "数据"), job.get("data")),
        (say("held-out data", "评估数据"), job.get("held_out")),
        (say("reward", "奖励"), job.get("reward")),
        (say("instruction", "指令"), job.get("instruction")),
        (say("settings", "设置"), settings_text(settings)),
        (say("method's options", "方法选项"), options_text(job.get("options") or {})),
    ]
    return [
        "",
        say(f"{job['task']} ({kind})", f"{job['task']}（{kind}）"),
        *aligned([row for name, value in rows if value for row in wrapped(name, str(value))]),
    ]


def _training_losses(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """A job's losses at each evaluation, after the loss of the base without the adapter."""
    rows = [
        [
            say("step", "步"),
            say("epoch", "轮"),
            say("training loss", "训练损失"),
            say("held-out loss", "留出损失"),
            "",
        ]
    ]
    losses: list[float] = []
    last: dict[str, Any] = {}
    best = _best(metrics)
    for item in metrics:
        if "base_eval_loss" in item and item["base_eval_loss"] is not None:
            base = say("without the adapter", "不使用适配器")
            rows.append(["0", "", "", f"{item['base_eval_loss']:.3f}", base])
        elif "eval_loss" in item:
            rows.append(_loss_row(item, losses, best))
            losses = []
        elif "loss" in item:
            losses.append(item["loss"])
            last = item
    if losses:  # not evaluated since: the job has no held-out rows, or was interrupted
        rows.append(_loss_row(last, losses, best))
    if len(rows) == 1:
        return [say("  no step yet", "  尚未训练")]
    return aligned(rows)


def _best(metrics: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation whose state is kept: the last one that was the best so far."""
    return next((item for item in reversed(metrics) if item.get("best")), None)


def _loss_row(item: dict[str, Any], losses: list[float], best: dict[str, Any] | None) -> list[str]:
    held_out = item.get("eval_loss")
    return [
        str(item.get("step", 0)),
        f"{item['epoch']:g}" if "epoch" in item else "",
        f"{mean(losses):.3f}" if losses else "",
        "" if held_out is None else f"{held_out:.3f}",
        say("best", "最佳") if item is best else "",
    ]


def _alignment_losses(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """The measurements of each evaluation of an alignment."""
    evaluations = [item for item in metrics if any(key.startswith("eval_") for key in item)]
    if not evaluations:
        return [say("  no evaluation yet", "  尚未评估")]
    left_out = ("time", "step", "best")
    keys = list(dict.fromkeys(key for item in evaluations for key in item if key not in left_out))
    rows = [[say("step", "步"), *map(name_of, keys), ""]]
    best = _best(evaluations)
    for item in evaluations:
        numbers = [f"{item[key]:.3f}" if isinstance(item.get(key), float) else "" for key in keys]
        mark = say("best", "最佳") if item is best else ""
        rows.append([str(item.get("step", 0)), *numbers, mark])
    return aligned(rows)


def _race(run: Run, metrics: Sequence[dict[str, Any]]) -> list[str]:
    """A race's setup and leaderboard; the losses so far if it has not ended."""
    race, jobs = run.config["race"], run.config.get("jobs", [])
    methods = listed(dict.fromkeys(job["method"] for job in jobs))
    header = [say("rank", "名次"), "#", say("method", "方法"), say("settings", "设置")]
    rows = [[*header, say("best held-out loss", "最佳留出损失"), say("steps", "步数")]]
    ladder = run.path / "ladder.json"
    places = (
        json.loads(ladder.read_text(encoding="utf-8"))["ladder"]
        if ladder.exists()
        else [_place(number, job, metrics) for number, job in enumerate(jobs, start=1)]
    )
    for place in places:
        losses = [item["loss"] for item in place["losses"]]
        rows.append(
            [
                str(place["rank"]),
                str(place["number"]),
                place["method"],
                settings_text(place["settings"]),
                f"{min(losses):.3f}" if losses else "",
                str(place["step"]),
            ]
        )
    return [
        "",
        say(
            f"{race['task']}: race of {race['configurations']} configurations ({methods}) over "
            f"{race['epochs']} epochs, budget {race['budget'] or 'none'}",
            f"{race['task']}：{race['configurations']} 个配置（{methods}）的竞赛，"
            f"{race['epochs']} 轮，预算 {race['budget'] or '无'}",
        ),
        *(aligned([[say("data", "数据"), str(jobs[0]["data"])]]) if jobs else ()),
        *aligned(rows),
    ]


def _comparison(run: Run) -> list[str]:
    """What was compared; its tables and its verdict once it has finished."""
    # Its libraries for statistics take a second to import.
    from onebase.cli.compare_report import comparison_lines
    from onebase.compare.evidence import Evidence
    from onebase.compare.record import FILE, load

    asked, job = run.config["compare"], run.config["job"]
    methods = listed(asked["methods"])
    kind = say(
        f"comparison of {methods}; seeds: {asked['seeds']}",
        f"{methods} 的对比，种子数 {asked['seeds']}",
    )
    lines = _job_lines(job, kind)
    if (run.path / FILE).exists():
        lines += ["", *comparison_lines(Evidence.of(load(run.path)))]
    return lines


def _place(number: int, job: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A configuration of a race without a leaderboard, as an entry of ladder.json."""
    records = [item for item in metrics if item.get("task") == job["task"]]
    return {
        "rank": "",
        "number": number,
        "method": job["method"],
        "settings": {key: value for key, value in job["set"].items() if key != "epochs"},
        "losses": [{"loss": item["eval_loss"]} for item in records if "eval_loss" in item],
        "step": max((item.get("step", 0) for item in records), default=0),
    }


def _notes(metrics: Sequence[dict[str, Any]]) -> list[str]:
    notes = [item["note"] for item in metrics if "note" in item]
    return [say("Notes:", "注意："), *(f"  {text}" for text in notes)] if notes else []


def _record_of(name: str, workspace: Workspace) -> dict[str, Any]:
    """The record of a stored version; empty if it was removed or can't be read."""
    try:
        return AdapterStore(workspace).get(name).record
    except OnebaseError:
        return {}


def _next_steps(run: Run, workspace: Workspace) -> list[str]:
    if run.resumable:
        command = resume_command(run, workspace)
        return ["", say(f"Continue it: {command}", f"继续训练：{command}")]
    lines = [""]
    for adapter in run.summary.get("adapters", ()):
        name = adapter if isinstance(adapter, str) else f"{adapter['task']}@{adapter['version']}"
        command = command_to_use(name, _record_of(name, workspace), workspace)
        lines.append(say(f"Stored as {name}. Try: {command}", f"已保存为 {name}。试试：{command}"))
    return lines
