"""A stored adapter as a person reads it."""

from collections.abc import Mapping
from typing import Any

from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.cli.units import aligned, change, listed, moment, settings_text, size, wrapped
from onebase.language import say


def adapter_lines(item: StoredAdapter, workspace: Workspace) -> list[str]:
    """What a version is, how it came to be, and what to do with it."""
    state = (
        say("the current version", "当前版本")
        if item.current
        else say("not the current version", "非当前版本")
    )
    rows = [*_origin(item.record), *_results(item.metrics), *_files(item)]
    return [
        say(f"{item.name} ({item.method}): {state}", f"{item.name}（{item.method}）：{state}"),
        *aligned([row for name, value in rows for row in wrapped(name, value)]),
        *_next_steps(item, workspace),
    ]


def _origin(record: dict[str, Any]) -> list[tuple[str, str]]:
    template = record.get("template") or {}
    precision = record.get("precision")
    options = record.get("options") or {}
    # A composite adapter has options for each of its methods.
    nested = any(isinstance(value, dict) for value in options.values())
    settings = [
        (f"  {method}", settings_text(values)) if isinstance(values, dict) else ("", "")
        for method, values in (options.items() if nested else ())
    ]
    return [
        (say("stored", "保存时间"), moment(record.get("created"))),
        (
            say("base", "基座"),
            say(f"{record.get('base')} in {precision}", f"{record.get('base')}，精度 {precision}"),
        ),
        (say("trained by", "训练方式"), _how(record)),
        (say("data", "数据"), str(record.get("data") or "")),
        (say("run", "训练记录"), str(record.get("run") or "")),
        (say("options", "方法设置"), "" if nested else settings_text(options)),
        *settings,
        (say("instruction", "指令"), str(template.get("instruction") or "")),
        (say("labels", "标签"), listed([str(label) for label in record.get("labels") or []])),
    ]


def _how(record: dict[str, Any]) -> str:
    """The command that made the version."""
    if record.get("imported"):
        return say("elsewhere; it was imported", "在别处训练，后导入")
    if record.get("head"):
        return say(
            "onebase align reward; it scores answers", "onebase align reward；用于给回答打分"
        )
    if algorithm := record.get("aligned"):
        start = record.get("reference") or say("a new adapter", "新的适配器")
        command = f"align {algorithm}"
        return say(
            f"onebase {command}, starting from {start}", f"onebase {command}，起点为 {start}"
        )
    return "onebase race" if "race" in record.get("metrics", {}) else "onebase train"


def _results(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    loss, before = metrics.get("eval_loss"), metrics.get("base_eval_loss")
    text = ""
    if isinstance(loss, float):
        text = f"{loss:.3f}"
        if isinstance(before, float):
            text = f"{before:.3f} -> {loss:.3f}{change(before, loss)}"
    rows = [(say("held-out loss", "留出损失"), text)]
    for key, name in (
        ("pair_accuracy", say("pair accuracy", "回答对准确率")),
        ("reward", say("held-out reward", "留出奖励")),
        ("kl", "KL"),
    ):
        if isinstance(metrics.get(key), float):
            rows.append((name, f"{metrics[key]:.3f}"))
    if metrics.get("diverged"):
        rows.append((say("note", "注意"), say("its loss exploded", "损失已发散")))
    if isinstance(metrics.get("trainable"), int):
        rows.append((say("parameters", "参数"), f"{metrics['trainable']:,}"))
    return rows


def _files(item: StoredAdapter) -> list[tuple[str, str]]:
    return [
        (
            say("files", "文件"),
            say(f"{size(item.bytes)} in {item.path}", f"{size(item.bytes)}，位于 {item.path}"),
        )
    ]


def command_to_use(name: str, record: Mapping[str, Any], workspace: Workspace) -> str:
    """The command for what a task was trained for: to score, to classify or to generate."""
    if record.get("head"):
        return f"onebase align score --task {name}{workspace.option} --prompt … --answer …"
    if record.get("labels"):
        return f"onebase classify --task {name}{workspace.option} --text …"
    return f"onebase generate --task {name}{workspace.option} --prompt …"


def _next_steps(item: StoredAdapter, workspace: Workspace) -> list[str]:
    command = command_to_use(item.task if item.current else item.name, item.record, workspace)
    lines = [say(f"Try: {command}", f"试试：{command}")]
    if not item.current:
        promote = f"onebase adapters promote {item.name}{workspace.option}"
        lines.append(say(f"Make it the current version: {promote}", f"设为当前版本：{promote}"))
    return lines
