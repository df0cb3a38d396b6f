"""`onebase adapters`: the tasks, their versions, PEFT adapters from elsewhere."""

from pathlib import Path
from typing import Annotated, Any

import typer

from onebase.adapters.store import StoredAdapter, check_task_name
from onebase.cli.options import BaseOption, SessionFlags
from onebase.cli.session import begin, note
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE

adapters_app = typer.Typer(help="The tasks and their versions.")
Name = Annotated[str, typer.Argument(help="task or task@version")]


@adapters_app.command("list")
def list_command(*, flags: SessionFlags) -> None:
    """Every version of every task."""
    session = begin(flags)
    items = session.store.list()
    left_out = session.store.unlisted()
    for error in left_out.values():
        note(say(f"Note: {error.message} {error.remedy}", f"注意：{error.message}{error.remedy}"))
    result: dict[str, Any] = {"adapters": [described(item) for item in items]}
    if left_out:
        result["unlisted"] = [
            {"path": str(path), "message": error.message, "remedy": error.remedy}
            for path, error in left_out.items()
        ]
    session.table(
        result,
        ["task", "version", "current", "method", "base", "bytes", "held-out loss"],
        [
            [
                item.task,
                item.version,
                "*" if item.current else "",
                item.method,
                item.base,
                item.bytes,
                item.metrics.get("eval_loss"),
            ]
            for item in items
        ],
    )


@adapters_app.command("show")
def show_command(
    name: Name,
    *,
    flags: SessionFlags,
) -> None:
    """One version: what it is, how it was trained, where it is."""
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
    session.show(
        described(item), say(f"{item.task} is now {item.name}", f"{item.task} 现在是 {item.name}")
    )


@adapters_app.command("rollback")
def rollback_command(
    task: Annotated[str, typer.Argument(help="The task.")],
    *,
    flags: SessionFlags,
) -> None:
    """Go back to the version that was current before."""
    session = begin(flags)
    item = session.store.rollback(task)
    session.show(
        described(item), say(f"{item.task} is now {item.name}", f"{item.task} 现在是 {item.name}")
    )


@adapters_app.command("remove")
def remove_command(
    name: Name,
    *,
    flags: SessionFlags,
) -> None:
    """Delete one version (task@2), or a task with all its versions."""
    session = begin(flags)
    removed = session.store.remove(name)
    session.show(
        {"removed": [item.name for item in removed]},
        *(say(f"removed {item.name}", f"已删除 {item.name}") for item in removed),
    )


@adapters_app.command("import")
def import_command(
    folder: Annotated[
        Path, typer.Argument(help="A folder that PEFT saved, or ChatGLM2's ptuning scripts.")
    ],
    task: Annotated[str, typer.Option(help="The task it becomes.")],
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
    """Take in an adapter in PEFT's format, checked against its base."""
    # Late: only this command of the group needs the engine.
    from onebase.adapters.importing import find_adapter, read_adapter
    from onebase.data.template import Template
    from onebase.engine.generic_runner import GenericRunner
    from onebase.engine.prompt_kv import with_prompt_kv
    from onebase.model.base import Base

    session = begin(flags)
    check_task_name(task)
    source = find_adapter(folder)
    loaded = Base.load(base or DEFAULT_BASE)
    found = read_adapter(source, loaded)
    asked = {"kind": template, "instruction": instruction}
    settings = {**found.record.get("template", {}), **{k: v for k, v in asked.items() if v}}

    def write(target: Path) -> None:
        found.write(target)
        with_prompt_kv(GenericRunner(loaded), found.adapter, target)

    item = session.store.add(
        task,
        write,
        {
            "base": loaded.name,
            "base_fingerprint": loaded.fingerprint,
            "precision": found.record.get("precision", loaded.precision.text),
            "method": found.method,
            "options": found.options,
            "template": Template.from_config(loaded.tokenizer, settings).config(),
            "imported": True,
            "labels": found.record.get("labels", []),
            **found.head,
            "metrics": found.metrics,
        },
    )
    for text in found.notes:
        note(say(f"Note: {text}", f"注意：{text}"))
    session.show(
        {**described(item), "notes": list(found.notes)},
        say(f"imported as {item.name}", f"已导入为 {item.name}"),
    )


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
