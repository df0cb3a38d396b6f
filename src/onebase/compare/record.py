"""A comparison and its arms as JSON files in a run's folder."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from onebase.adapters.workspace import Workspace, write_whole
from onebase.compare.result import Arm, Comparison
from onebase.errors import CorruptFileError
from onebase.language import say

Record = TypeVar("Record", Arm, Comparison)
RESULT = "comparison.json"


def save(record: Arm | Comparison, file: Path) -> None:
    """Write a record; `load` reads the same values. Raises OSError where the disk refuses."""
    text = TypeAdapter(type(record)).dump_json(record, indent=1).decode()
    write_whole(file, text + "\n")


def load(kind: type[Record], file: Path) -> Record:
    """A record from its file. Raises CorruptFileError."""
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptFileError(
            say(f"{file} is damaged: {reason}.", f"{file} 已损坏：{reason}。"),
            say(
                "Restore it from a copy, or run onebase compare again.",
                "请从备份恢复该文件，或重新运行 onebase compare。",
            ),
        ) from error


def comparisons(workspace: Workspace) -> list[Comparison]:
    """Every finished comparison of a workspace, newest last. Raises CorruptFileError."""
    return [load(Comparison, file) for file in sorted(workspace.runs.glob(f"*/{RESULT}"))]
