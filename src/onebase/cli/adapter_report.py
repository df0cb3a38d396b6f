"""The report on a stored adapter, for `adapters show`."""

from collections.abc import Mapping
from typing import Any

from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.cli.session import suggestion
from onebase.cli.units import aligned, loss_change, moment, options_text, wrapped
from onebase.language import say
from onebase.quantity import listed, size


def adapter_lines(item: StoredAdapter, workspace: Workspace) -> list[str]:
    """A version's state, origin, results and files, and the next commands."""
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
    return [
        (say("stored", "保存时间"), moment(record.get("created"))),
        (
            say("base", "基座"),
            say(f"{record.get('base')} in {precision}", f"{record.get('base')}，精度 {precision}"),
        ),
        (say("trained by", "训练方式"), _how(record)),
        (say("data", "数据"), str(record.get("data") or "")),
        (say("run", "训练记录"), str(record.get("run") or "")),
        (say("options", "方法选项"), options_text(record.get("options") or {})),
        (say("instruction", "指令"), str(template.get("instruction") or "")),
        (say("labels", "标签"), listed([str(label) for label in record.get("labels") or []])),
    ]


def _how(record: dict[str, Any]) -> str:
    """The command that trained the version."""
    if record.get("imported"):
        return say("another program (imported)", "由其他程序训练后导入")
    if record.get("head"):
        return say("onebase align reward (a reward model)", "onebase align reward，奖励模型")
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
        text = loss_change(before, loss) if isinstance(before, float) else f"{loss:.3f}"
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
    """The command that uses a task: score for a reward model, classify for labels, else generate."""
    if record.get("head"):
        return f"onebase align score --task {name}{workspace.option} --prompt … --answer …"
    if record.get("labels"):
        return f"onebase classify --task {name}{workspace.option} --text …"
    return f"onebase generate --task {name}{workspace.option} --prompt …"


def _next_steps(item: StoredAdapter, workspace: Workspace) -> list[str]:
    command = command_to_use(item.task if item.current else item.name, item.record, workspace)
    lines = [suggestion(command)]
    if not item.current:
        promote = f"onebase adapters promote {item.name}{workspace.option}"
        lines.append(say(f"Make it the current version: {promote}", f"设为当前版本：{promote}"))
    return lines
