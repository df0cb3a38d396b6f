"""`onebase data check` and `onebase doctor`."""

import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import torch
import typer

from onebase.cli.session import (
    BaseOption,
    EncodingOption,
    JsonOption,
    LangOption,
    Session,
    WorkspaceOption,
    begin,
)
from onebase.cli.training import ColumnsOption
from onebase.data.check import CheckReport, check
from onebase.data.columns import columns_of
from onebase.data.example import Dataset
from onebase.data.fields import EMPTY, REFUSED, UNREAD
from onebase.data.formats import load_dataset
from onebase.data.preference_check import PreferenceReport, check_preferences
from onebase.data.preferences import BARE, PreferenceSet, load_preferences
from onebase.data.template import Template
from onebase.errors import CorruptFileError, DataError, FolderError, OnebaseError, UsageError
from onebase.language import say
from onebase.model.cache import cached_models, models_folder, require_writable_cache
from onebase.model.eos import named_ends
from onebase.model.fetch import DEFAULT_BASE, resolve
from onebase.model.tokenizer import read_tokenizer

data_app = typer.Typer(help="Data files.")

Content = Literal["auto", "answers", "preferences"]


@data_app.command("check")
def check_command(
    file: Annotated[str, typer.Argument(help="The data file.")],
    held_out: Annotated[str | None, typer.Option(help="The file it will be judged by.")] = None,
    columns: ColumnsOption = None,
    encoding: EncodingOption = None,
    content: Annotated[
        Content,
        typer.Option(
            "--as", help="answers to learn, or preferences (pairs, ratings, judged answers)."
        ),
    ] = "auto",
    base: BaseOption = None,
    instruction: Annotated[str | None, typer.Option(help="The task's instruction.")] = None,
    template: Annotated[
        str, typer.Option(help="auto, chat, plain, or a text with {input}.")
    ] = "auto",
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer rows are cut.")] = 512,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Format, first rendered example, bad rows, duplicates, overlap, token counts."""
    session = begin(workspace, as_json, lang)
    chosen = columns_of(columns) if columns else None
    data = _loaded(file, chosen, encoding, content)
    bare = isinstance(data, PreferenceSet) and data.bare
    folder = resolve(base or DEFAULT_BASE)
    ends = named_ends(folder)
    rendering = Template(
        _tokenizer(folder),
        kind=BARE if bare and template == "auto" else template,
        instruction=instruction,
        max_tokens=max_tokens,
    )
    report: CheckReport | PreferenceReport
    if isinstance(data, PreferenceSet):
        judged = load_preferences(held_out, columns=chosen, encoding=encoding) if held_out else None
        report = check_preferences(data, rendering, held_out=judged, ends=ends)
    else:
        examples = load_dataset(held_out, columns=chosen, encoding=encoding) if held_out else None
        report = check(data, rendering, held_out=examples, ends=ends)
    found = report.to_dict()
    if as_json:
        session.show(found)
    else:
        for line in _lines(found):
            print(line)
    if report.bad:
        raise typer.Exit(3)


def _loaded(
    file: str, columns: dict[str, str] | None, encoding: str | None, content: Content
) -> Dataset | PreferenceSet:
    """What the file holds: answers where its columns are some format's, else preferences."""
    if content == "preferences":
        return load_preferences(file, columns=columns, encoding=encoding)
    try:
        return load_dataset(file, columns=columns, encoding=encoding)
    except (DataError, UsageError) as refusal:
        if content == "answers":
            raise
        try:
            return load_preferences(file, columns=columns, encoding=encoding)
        except OnebaseError:
            raise refusal from None


def _tokenizer(path: Path) -> Any:
    """The tokenizer alone of a base: its weights say nothing about a file."""
    try:
        return read_tokenizer(path)
    except (ValueError, KeyError, OSError) as error:
        raise CorruptFileError(
            say(
                f"The tokenizer in {path} can't be loaded: {error}",
                f"无法加载 {path} 中的分词器：{error}",
            ),
            say(
                "Fetch the base again, or check its tokenizer.json.",
                "请重新获取基座，或检查其 tokenizer.json。",
            ),
        ) from error


def _lines(content: dict[str, Any]) -> list[str]:
    """The report as a person reads it."""
    lines = []
    for key, value in content.items():
        if key == "first_example" or value is None:
            continue
        if key == "fields":
            lines.append(f"{key}:")
            lines += [f"  {name}: {_use(use)}" for name, use in value.items()]
        elif isinstance(value, (list, tuple)):
            lines.append(f"{key}: {len(value)}")
            lines += [f"  {_row(item)}" for item in value[:10]]
            if len(value) > 10:
                lines.append(
                    say(f"  … and {len(value) - 10} more", f"  … 另有 {len(value) - 10} 项")
                )
        else:
            lines.append(f"{key}: {_row(value)}")
    lines += [
        say("first example, ⟦learned part⟧ marked:", "第一个样例，⟦学习部分⟧已标出："),
        str(content.get("first_example")),
    ]
    return lines


def _use(use: str) -> str:
    """What became of a field, for people."""
    return {
        UNREAD: say("not read", "未读取"),
        EMPTY: say("empty", "为空"),
        REFUSED: say("refused", "不支持"),
    }.get(use, use)


def _row(item: Any) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{key} {value}" for key, value in item.items() if value is not None)
    return str(item)


def doctor_command(
    workspace: WorkspaceOption = None, as_json: JsonOption = False, lang: LangOption = None
) -> None:
    """Device, memory, libraries, base models, and what is missing."""
    session = begin(workspace, as_json, lang)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = psutil.virtual_memory()
    try:
        folder, models = models_folder(), [path.name for path in cached_models()]
    except FolderError:  # no home folder: told among the problems
        folder, models = None, []
    kept = (folder or session.workspace.root).absolute()
    disk = shutil.disk_usage(next(path for path in [kept, *kept.parents] if path.exists()))
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "device": gpu or "cpu",
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        "disk_free_bytes": disk.free,
        "libraries": {
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "peft", "safetensors")
        },
        "models": models,
        "cache": None if folder is None else str(folder),
        "workspace": str(session.workspace.root),
        "tasks": session.store.tasks(),
        "missing": [] if DEFAULT_BASE in models else [DEFAULT_BASE],
    }
    lines = [f"{key}: {_row(value)}" for key, value in result.items() if key != "missing"]
    problems = _problems(session)
    result["problems"] = [
        {"message": problem.message, "remedy": problem.remedy} for problem in problems
    ]
    lines += [
        say(f"problem: {item.message} {item.remedy}", f"问题：{item.message}{item.remedy}")
        for item in problems
    ]
    for name in result["missing"]:
        lines.append(
            say(
                f"missing: {name} - get it with: onebase model pull {name}",
                f"缺少：{name}，获取方法：onebase model pull {name}",
            )
        )
    session.show(result, *lines)


def _problems(session: Session) -> list[OnebaseError]:
    """What would keep other commands from their work: folders that can't be written to, adapters that
    can't be read.
    """
    found: list[OnebaseError] = []
    for require in (require_writable_cache, session.workspace.require_writable):
        try:
            require()
        except FolderError as error:
            found.append(error)
    return [*found, *session.store.unlisted().values()]
