"""`onebase model`: base models on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from onebase.cli.options import SessionFlags
from onebase.cli.session import begin, note
from onebase.language import say
from onebase.model.cache import cached_models
from onebase.model.fetch import DEFAULT_BASE, EMBEDDED, resolve

model_app = typer.Typer(help="Base models.")
Name = Annotated[
    str, typer.Argument(help="smollm2-135m, gemma3-270m, a folder, a .gguf file, or a Hub id")
]


@model_app.command("pull")
def pull_command(
    name: Name = DEFAULT_BASE,
    *,
    flags: SessionFlags,
) -> None:
    """Fetch, verify and convert a base model."""
    session = begin(flags)
    note(say(f"Getting {name} …", f"正在获取 {name} …"))
    path = resolve(name)
    lines = [say(f"{name} is at {path}", f"{name} 位于 {path}")]
    if name in EMBEDDED:
        licence = EMBEDDED[name].licence
        lines.append(say(f"Its weights' licence: {licence}", f"权重许可：{licence}"))
    session.show(_described(name, path), *lines)


@model_app.command("list")
def list_command(*, flags: SessionFlags) -> None:
    """The base models in the cache."""
    session = begin(flags)
    there = {path.name: path for path in cached_models()}
    rows = [_described(name, path) for name, path in there.items()]
    missing = [name for name in EMBEDDED if name not in there]
    session.table(
        {"models": rows, "available": missing},
        ["model", "bytes", "path"],
        [[row["name"], row["bytes"], row["path"]] for row in rows]
        + [
            [
                name,
                "",
                say(
                    f"not fetched yet: onebase model pull {name}",
                    f"尚未获取：onebase model pull {name}",
                ),
            ]
            for name in missing
        ],
    )


@model_app.command("path")
def path_command(
    name: Name = DEFAULT_BASE,
    *,
    flags: SessionFlags,
) -> None:
    """A base model's folder, fetched if need be."""
    session = begin(flags)
    path = resolve(name)
    session.show(_described(name, path), str(path))


def _described(name: str, path: Path) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    described = {"name": name, "path": str(path), "bytes": size}
    return described | ({"licence": EMBEDDED[name].licence} if name in EMBEDDED else {})
