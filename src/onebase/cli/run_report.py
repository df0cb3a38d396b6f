"""A run as a person reads it: what was asked for, the losses, the notes, and what to do next."""

import json
from collections.abc import Sequence
from statistics import mean
from typing import Any

from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.cli.adapter_report import command_to_use
from onebase.cli.units import aligned, duration, moment, settings_text, wrapped
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.runs.run import Run

_EVALUATED = "eval_"


def run_lines(run: Run, metrics: Sequence[dict[str, Any]], workspace: Workspace) -> list[str]:
    """All that a person may want to know of a run."""
    config = run.config
    lines = [_status(run)]
    base, precision = config.get("base"), config.get("precision")
    lines += [
        say(f"Base: {base} in {precision}.", f"基座：{base}，精度 {precision}。"),
        say(f"Folder: {run.path}", f"目录：{run.path}"),
    ]
    if "align" in config:
        lines += _asked(config["job"], say(f"align {config['align']}", f"对齐 {config['align']}"))
        lines += _alignment_losses(metrics)
    elif run.is_race:
        lines += _race(run, metrics)
    else:
        for job in config.get("jobs", []):
            lines += _asked(job, str(job["method"]))
            lines += _training_losses([item for item in metrics if item.get("task") == job["task"]])
    lines += _notes(metrics)
    files = [run.path / name for name in ("curves.png", "samples.jsonl", "ladder.png", "report.md")]
    if made := [str(file) for file in files if file.exists()]:
        lines += [say("Files:", "文件："), *(f"  {file}" for file in made)]
    return lines + _next_steps(run, workspace)


def _status(run: Run) -> str:
    """How the run ended, or that it has not."""
    seconds, ended = run.summary.get("seconds"), run.summary.get("ended")
    after = (
        say(f" after {duration(seconds)}", f"，用时 {duration(seconds)}")
        if isinstance(seconds, int | float)
        else ""
    )
    when = say(f" ({moment(ended)})", f"（{moment(ended)}）") if ended else ""
    status = {
        "running": say("still running", "仍在运行"),
        "finished": say("finished", "已完成"),
        "interrupted": say("interrupted", "已中断"),
        "failed": say("failed", "失败"),
    }[run.status]
    reason = run.summary.get("reason")
    because = say(f": {reason}", f"：{reason}") if reason else ""
    return say(f"Run {run.id}: {status}", f"训练 {run.id}：{status}") + after + when + because


def _asked(job: dict[str, Any], how: str) -> list[str]:
    """What a job was asked to learn, from which data, with which settings."""
    given = {
        **{
            key: value
            for key, value in job.get("set", {}).items()
            if key not in job.get("options", {})
        },
        "seed": job.get("seed"),
    }
    method = job.get("method") if how != job.get("method") else None
    rows = [
        (say("method", "方法"), method),
        (say("starts from", "起点"), job.get("start")),
        (say("data", "数据"), job.get("data")),
        (say("held-out data", "评估数据"), job.get("held_out")),
        (say("reward", "奖励"), job.get("reward")),
        (say("instruction", "指令"), job.get("instruction")),
        (say("settings", "设置"), settings_text(given)),
        (say("method's options", "方法设置"), _options(job.get("options") or {})),
    ]
    return [
        "",
        say(f"{job['task']} ({how})", f"{job['task']}（{how}）"),
        *aligned([row for name, value in rows if value for row in wrapped(name, str(value))]),
    ]


def _options(options: dict[str, Any]) -> str:
    """A method's options; those of a composite, each method's behind its name."""
    if any(isinstance(value, dict) for value in options.values()):
        return "; ".join(f"{name}: {settings_text(values)}" for name, values in options.items())
    return settings_text(options)


def _training_losses(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """A job's losses at every evaluation, the base's own loss first."""
    rows = [
        [
            say("step", "步"),
            say("epoch", "轮次"),
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
    if losses:  # no evaluation since: the job has no held-out rows, or it was interrupted
        rows.append(_loss_row(last, losses, best))
    if len(rows) == 1:
        return [say("  no step yet", "  尚未训练")]
    return aligned(rows)


def _best(metrics: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation whose state is kept: the last one that was better than all before."""
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
    """What every evaluation of an alignment measured."""
    evaluations = [item for item in metrics if any(key.startswith(_EVALUATED) for key in item)]
    if not evaluations:
        return [say("  no evaluation yet", "  尚未评估")]
    left_out = ("time", "step", "best")
    keys = list(dict.fromkeys(key for item in evaluations for key in item if key not in left_out))
    names = [_measure(key) for key in keys]
    rows = [[say("step", "步"), *names, ""]]
    best = _best(evaluations)
    for item in evaluations:
        numbers = [f"{item[key]:.3f}" if isinstance(item.get(key), float) else "" for key in keys]
        mark = say("best", "最佳") if item is best else ""
        rows.append([str(item.get("step", 0)), *numbers, mark])
    return aligned(rows)


def _measure(key: str) -> str:
    """The name of a measurement, from its key."""
    names = {
        "eval_loss": say("held-out loss", "留出损失"),
        "eval_reward": say("held-out reward", "留出奖励"),
        "eval_kl": "KL",
        "eval_deviation": say("reward's deviation", "奖励标准差"),
        "eval_distinct_2": "distinct-2",
        "eval_length": say("answer's tokens", "回答词元数"),
        "eval_objective": say("objective", "目标值"),
        "pair_accuracy": say("pair accuracy", "回答对准确率"),
        "margin": say("margin", "差值"),
    }
    return names.get(key, key.removeprefix(_EVALUATED).replace("_", " "))


def _race(run: Run, metrics: Sequence[dict[str, Any]]) -> list[str]:
    """What was raced, and the leaderboard; before the race has ended, each configuration's losses."""
    race, jobs = run.config["race"], run.config.get("jobs", [])
    methods = ", ".join(dict.fromkeys(job["method"] for job in jobs))
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
            f"{race['epochs']} 个 epoch，预算 {race['budget'] or '无'}",
        ),
        *(aligned([[say("data", "数据"), str(jobs[0]["data"])]]) if jobs else ()),
        *aligned(rows),
    ]


def _place(number: int, job: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A configuration of a race that has no leaderboard yet, in the form of the leaderboard's."""
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
    return [say("Notes:", "提示："), *(f"  {text}" for text in notes)] if notes else []


def _record_of(name: str, workspace: Workspace) -> dict[str, Any]:
    """The record of a stored version; empty where it was removed or can't be read."""
    try:
        return AdapterStore(workspace).get(name).record
    except OnebaseError:
        return {}


def _next_steps(run: Run, workspace: Workspace) -> list[str]:
    option = workspace.option
    if run.resumable:
        command = f"onebase resume {run.id}{option}"
        return ["", say(f"Continue it: {command}", f"继续训练：{command}")]
    lines = [""]
    for adapter in run.summary.get("adapters", ()):
        name = adapter if isinstance(adapter, str) else f"{adapter['task']}@{adapter['version']}"
        command = command_to_use(name, _record_of(name, workspace), workspace)
        lines.append(say(f"Stored as {name}. Try: {command}", f"已保存为 {name}。试试：{command}"))
    return lines
