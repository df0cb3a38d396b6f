"""A comparison as a file in its run's folder, from which its report can be made again."""

import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json as pydantic_json

from onebase.adapters.workspace import write_whole
from onebase.compare.result import Comparison
from onebase.errors import CorruptFileError, UsageError
from onebase.language import say

FILE = "comparison.json"
_VERSION = 1
_ADAPTER = TypeAdapter(Comparison)


def to_json(comparison: Comparison) -> str:
    """The comparison as JSON. Numbers that JSON does not have are strings: "NaN", "Infinity"."""
    value = {"version": _VERSION, "comparison": comparison}
    return pydantic_json(value, inf_nan_mode="strings", indent=1).decode() + "\n"


def from_json(text: str, name: str = FILE) -> Comparison:
    """The comparison that `to_json` wrote. Raises CorruptFileError, naming the file `name`."""
    try:
        value = json.loads(text)
        version = value["version"]
        if version == _VERSION:
            return _ADAPTER.validate_python(value["comparison"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(name, f"{place}: {first['msg']}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(name, str(error)) from None
    raise CorruptFileError(
        say(
            f"{name} has version {version}; this onebase reads version {_VERSION}.",
            f"{name} 的版本为 {version}，当前 onebase 只能读取版本 {_VERSION}。",
        ),
        say(
            "Install the version that wrote it, or run the comparison again.",
            "请使用写入该文件的 onebase 版本，或重新运行对比。",
        ),
    )


def save(comparison: Comparison, folder: Path) -> Path:
    """Write the comparison into its run's folder; the path of the file."""
    file = folder / FILE
    write_whole(file, to_json(comparison))
    return file


def load(folder: Path) -> Comparison:
    """The comparison kept in a run's folder. Raises UsageError where there is none, and
    CorruptFileError.
    """
    file = folder / FILE
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(
            say(f"{folder} holds no comparison.", f"{folder} 中没有对比结果。"),
            say(
                f"Name the folder of a run of onebase compare: it holds {FILE} once it is finished.",
                f"请指定 onebase compare 的运行目录：对比完成后其中有 {FILE}。",
            ),
        ) from None
    except UnicodeDecodeError as error:
        raise _damaged(str(file), str(error)) from None
    return from_json(text, str(file))


def _damaged(name: str, reason: str) -> CorruptFileError:
    return CorruptFileError(
        say(f"{name} is damaged: {reason}.", f"{name} 已损坏：{reason}。"),
        say(
            "Run the same onebase compare again: it reuses the runs that are still there.",
            "请再次运行同一条 onebase compare 命令：仍可用的运行结果会被复用。",
        ),
    )
