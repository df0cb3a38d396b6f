"""A measured arm as a file in its comparison's run, from which later comparisons take it."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from onebase.adapters.workspace import write_whole
from onebase.compare.result import Arm
from onebase.errors import CorruptFileError
from onebase.language import say

_ARM = TypeAdapter(Arm)


def save_arm(arm: Arm, file: Path) -> None:
    """Write an arm; numbers that JSON does not have are strings: "NaN", "Infinity"."""
    write_whole(file, to_json(arm, indent=1, inf_nan_mode="strings").decode() + "\n")


def load_arm(file: Path) -> Arm:
    """The arm that `save_arm` wrote. Raises CorruptFileError."""
    try:
        return _ARM.validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFileError(
            say(f"{file} is damaged: {reason}.", f"{file} 已损坏：{reason}。"),
            say(
                "Delete it and run the same onebase compare again: the arm is measured anew.",
                "请删除该文件并再次运行同一条 onebase compare 命令：该项会重新测量。",
            ),
        ) from error
