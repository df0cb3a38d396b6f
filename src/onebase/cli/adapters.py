"""`onebase adapters`: tasks, their versions, and the import of PEFT adapters."""

from pathlib import Path
from typing import Annotated, Any

import typer

from onebase.adapters.store import StoredAdapter, check_task_name
from onebase.cli.options import BaseOption, SessionFlags
from onebase.cli.session import begin, note_all, suggestion
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE
from onebase.quantity import size

adapters_app = typer.Typer(help="The tasks and their versions.")
Name = Annotated[str, typer.Argument(help="task or task@version")]


@adapters_app.command("list")
def list_command(*, flags: SessionFlags) -> None:
    """List every version of every task."""
    session = begin(flags)
    items = session.store.list()
    left_out = session.store.unlisted()
    note_all(
        say(f"{item.message} {item.remedy}", f"{item.message}{item.remedy}")
        for item in left_out.values()
    )
    result: dict[str, Any] = {"adapters": [described(item) for item in items]}
    if left_out:
        result["unlisted"] = [
            {"path": str(path), "message": error.message, "remedy": error.remedy}
            for path, error in left_out.items()
        ]
    train = f"onebase train --task T --data F --method lora{session.workspace.option}"
    session.table(
        result,
        [
            say("task", "任务"),
            say("version", "版本"),
            say("current", "当前"),
            say("method", "方法"),
            say("base", "基座"),
            say("size", "大小"),
            say("held-out loss", "留出损失"),
        ],
        [
            [
                item.task,
                item.version,
                "*" if item.current else "",
                item.method,
                item.base,
                size(item.bytes),
                _rounded(item.metrics.get("eval_loss")),
            ]
            for item in items
        ],
        empty=say(f"No adapters yet. Train one: {train}", f"暂无适配器。训练一个：{train}"),
    )


@adapters_app.command("show")
def show_command(
    name: Name,
    *,
    flags: SessionFlags,
) -> None:
    """Show how a version was trained, its results and its files."""
    from onebase.cli.adapter_report import adapter_lines

    session = begin(flags)
    item = session.store.get(name)
    session.store.verify(item)
    result = {**described(item), "path": str(item.path), "record": item.record}
    session.show(result, *adapter_lines(item, session.workspace))


@adapters_app.command("promote")
def promote_command(
    name: Name,
    *,
    flags: SessionFlags,
) -> None:
    """Make a version the task's current one."""
    session = begin(flags)
    item = session.store.promote(name)
    session.show(described(item), _now_current(item))


@adapters_app.command("rollback")
def rollback_command(
    task: Annotated[str, typer.Argument(help="The task.")],
    *,
    flags: SessionFlags,
) -> None:
    """Make the previously current version current again."""
    session = begin(flags)
    item = session.store.rollback(task)
    session.show(described(item), _now_current(item))


@adapters_app.command("remove")
def remove_command(
    name: Name,
    *,
    flags: SessionFlags,
) -> None:
    """Delete one version (task@2), or a task with all its versions."""
    session = begin(flags)
    removed = session.store.remove(name)
    lines = [say(f"removed {item.name}", f"已删除 {item.name}") for item in removed]
    if any(item.current for item in removed) and removed[0].task in session.store.tasks():
        lines.append(_now_current(session.store.get(removed[0].task)))
    session.show({"removed": [item.name for item in removed]}, *lines)


@adapters_app.command("import")
def import_command(
    folder: Annotated[
        Path, typer.Argument(help="A folder saved by PEFT or by ChatGLM2's ptuning scripts.")
    ],
    task: Annotated[str, typer.Option(help="The task to store it as.")],
    base: BaseOption = None,
    instruction: Annotated[
        str | None, typer.Option(help="The instruction it was trained with.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="auto (default), chat, plain, or a text with {input}.")
    ] = None,
    *,
    flags: SessionFlags,
) -> None:
    """Import an adapter in PEFT's format, and check it against its base."""
    # Late: of this group only this command imports torch.
    from onebase.adapters.importing import find_adapter, read_adapter
    from onebase.cli.adapter_report import command_to_use
    from onebase.cli.training import load_base
    from onebase.data.template import Template
    from onebase.engine.generic_runner import GenericRunner
    from onebase.engine.prompt_kv import with_prompt_kv

    session = begin(flags)
    check_task_name(task)
    source = find_adapter(folder)
    loaded = load_base(base or DEFAULT_BASE, None)
    imported = read_adapter(source, loaded)
    given = {"kind": template, "instruction": instruction}
    settings = {**imported.record.get("template", {}), **{k: v for k, v in given.items() if v}}

    def write(target: Path) -> None:
        imported.write(target)
        with_prompt_kv(GenericRunner(loaded), imported.adapter, target)

    item = session.store.add(
        task,
        write,
        {
            "base": loaded.name,
            "base_fingerprint": loaded.fingerprint,
            "precision": imported.record.get("precision", loaded.precision.text),
            "method": imported.method,
            "options": imported.options,
            "template": Template.from_config(loaded.tokenizer, settings).config(),
            "imported": True,
            "labels": imported.record.get("labels", []),
            **imported.head,
            "metrics": imported.metrics,
        },
    )
    note_all(imported.notes)
    session.show(
        {**described(item), "notes": list(imported.notes)},
        say(f"imported as {item.name}", f"已导入为 {item.name}"),
        suggestion(command_to_use(item.task, item.record, session.workspace)),
    )


def _now_current(item: StoredAdapter) -> str:
    return say(f"{item.task} is now {item.name}", f"{item.task} 的当前版本现在是 {item.name}")


def _rounded(loss: object) -> object:
    return f"{loss:.3f}" if isinstance(loss, float) else loss


def described(item: StoredAdapter) -> dict[str, Any]:
    """A stored adapter as `adapters list --json` shows it."""
    return {
        "task": item.task,
        "version": item.version,
        "current": item.current,
        "method": item.method,
        "base": item.base,
        "bytes": item.bytes,
        "created": item.created,
        "metrics": item.metrics,
    }
