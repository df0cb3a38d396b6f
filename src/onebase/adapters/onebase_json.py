"""onebase.json: the record of a stored adapter beside PEFT's two files, and the errors for a record
that can't be read.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from onebase.errors import CorruptFileError
from onebase.language import say

RECORD = "onebase.json"
CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"  # of a whole model, from full fine-tuning


def read_object(file: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of the stored adapter `name` (task@version).

    Raises CorruptFileError if there is none. If only the record of a PEFT adapter is missing, the
    error says that the folder was copied.
    """
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and file.name == RECORD
        if missing and any((file.parent / n).is_file() for n in (CONFIG, MODEL_CONFIG)):
            raise copied(file.parent, name) from error
        raise damaged_file(file, name, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise damaged_file(file, name, str(error)) from error
    if not isinstance(value, dict) or not value:
        raise damaged_file(file, name, say("it is not a JSON object", "内容不是 JSON 对象"))
    return value


def damaged_file(file: Path, name: str, reason: str) -> CorruptFileError:
    """The error for a file of the stored adapter `name` that can't be used."""
    return CorruptFileError(
        say(f"{file} is damaged: {reason}.", f"{file} 已损坏：{reason}。"),
        say(
            f"Restore it from a backup, or run `onebase adapters remove {name}` and train again.",
            f"请从备份恢复该文件，或运行 `onebase adapters remove {name}` 后重新训练。",
        ),
    )


def copied(folder: Path, name: str) -> CorruptFileError:
    """The error for a PEFT adapter or a whole model that was copied into the workspace by hand.

    `name` is the version that the folder has the place of, or a task.
    """
    task, at, _ = name.partition("@")
    if not (folder / CONFIG).is_file():
        path = shlex.quote(str(folder))
        return CorruptFileError(
            say(
                f"{folder} holds a model without {RECORD}: it was copied there, not trained.",
                f"{folder} 中的模型没有 {RECORD}：它是复制进来的，而不是在此训练的。",
            ),
            say(
                f"Move it out of the workspace and use it as a base, with --base and its new folder. "
                f"It is now at {path}.",
                f"请将其移出工作区，再用 --base 加新目录作为基座使用。它现在位于 {path}。",
            ),
        )
    command = f"onebase adapters import {shlex.quote(str(folder))} --task {shlex.quote(task)}"
    if (base := _base_in(folder)) is not None:
        command += f" --base {shlex.quote(base)}"
    next_step = say("then delete the copy", "然后删除这份副本")
    if at:
        remove = f"onebase adapters remove {name}"
        next_step = say(f"then remove the copy with: {remove}", f"然后删除副本：{remove}")
    return CorruptFileError(
        say(
            f"{folder} holds an adapter without {RECORD}: it was copied there, not imported.",
            f"{folder} 中的适配器没有 {RECORD}：它是复制进来的，而不是导入的。",
        ),
        say(f"Import it with: {command} ; {next_step}", f"请先导入：{command} ；{next_step}"),
    )


def _base_in(folder: Path) -> str | None:
    """The base that an adapter names, if it can be loaded by that name."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(name, str) or not name:
        return None
    local = name.startswith((".", "/", "~")) or name.count("/") != 1
    return name if not local or Path(name).is_dir() else None
