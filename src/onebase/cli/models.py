"""`onebase model`: base models on this machine."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from onebase.cli.options import SessionFlags
from onebase.cli.session import begin, note, suggestion
from onebase.language import say
from onebase.model.cache import cached_models
from onebase.model.fetch import DEFAULT_BASE, EMBEDDED, resolve
from onebase.quantity import size

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
    present = Path(name).is_dir() or name in {path.name for path in cached_models()}
    if not present:
        note(
            say(
                f"Fetching {name}: download, check, convert. This can take a few minutes …",
                f"正在获取 {name}：下载、校验、转换，可能需要几分钟 …",
            )
        )
    path = resolve(name)
    described = _described(name, path)
    total = size(described["bytes"])
    lines = [
        say(f"{name} was already there: {total} in {path}", f"{name} 已存在：{total}，位于 {path}")
        if present
        else say(f"{name} is ready: {total} in {path}", f"{name} 已就绪：{total}，位于 {path}")
    ]
    if "licence" in described:
        licence = described["licence"]
        lines.append(say(f"License of its weights: {licence}", f"权重许可：{licence}"))
    lines.append(suggestion(f"onebase generate --base {quote(name)} --prompt …"))
    session.show(described, *lines)


@model_app.command("list")
def list_command(*, flags: SessionFlags) -> None:
    """List the base models in the cache, and those that can be fetched by name."""
    session = begin(flags)
    cached = {path.name: path for path in cached_models()}
    rows = [_described(name, path) for name, path in cached.items()]
    missing = [name for name in EMBEDDED if name not in cached]
    session.table(
        {"models": rows, "available": missing},
        [say("model", "模型"), say("size", "大小"), say("folder", "目录")],
        [[row["name"], size(row["bytes"]), row["path"]] for row in rows]
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
    """Print a base model's folder; fetch the model first if it is missing."""
    session = begin(flags)
    path = resolve(name)
    session.show(_described(name, path), str(path))


def _described(name: str, path: Path) -> dict[str, Any]:
    total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    described = {"name": name, "path": str(path), "bytes": total}
    return described | ({"licence": EMBEDDED[name].licence} if name in EMBEDDED else {})
