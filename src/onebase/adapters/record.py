"""onebase.json: what is recorded of an adapter beside PEFT's two files, and what to say where it can't
be read.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from onebase.errors import CorruptFileError
from onebase.language import say

RECORD = "onebase.json"
CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"  # of full fine-tuning, a whole model


def read_object(file: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of the stored adapter `name` (task@version).

    Raises CorruptFileError where there is none; of a record that is missing beside an adapter of
    PEFT's, it says that the folder was copied.
    """
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        if file.name == RECORD and any((file.parent / n).is_file() for n in (CONFIG, MODEL_CONFIG)):
            raise copied(file.parent, name) from error
        raise damaged_file(file, name, error.strerror or str(error)) from error
    except OSError as error:
        raise damaged_file(file, name, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise damaged_file(file, name, str(error)) from error
    if not isinstance(value, dict) or not value:
        raise damaged_file(file, name, say("it holds no JSON object", "内容不是 JSON 对象"))
    return value


def damaged_file(file: Path, name: str, reason: str) -> CorruptFileError:
    """The error for a file of the stored adapter `name` that can't be used."""
    return CorruptFileError(
        say(f"{file} is damaged: {reason}.", f"{file} 已损坏：{reason}。"),
        say(
            f"Put back a copy of it, or run `onebase adapters remove {name}` and train again.",
            f"请从备份恢复该文件，或运行 `onebase adapters remove {name}` 后重新训练。",
        ),
    )


def copied(folder: Path, name: str) -> CorruptFileError:
    """The error for an adapter of PEFT's, or a whole model, in the workspace that onebase did not store
    there.

    `name` is the version that the folder stands for, or a task where it stands for none.
    """
    task, at, _ = name.partition("@")
    if not (folder / CONFIG).is_file():
        place = shlex.quote(str(folder))
        return CorruptFileError(
            say(
                f"{folder} holds a model without {RECORD}: it was copied there, not trained there.",
                f"{folder} 中的模型没有 {RECORD}：它是被复制进来的，而不是在此训练的。",
            ),
            say(
                f"Move it out of the workspace and use it as a base: --base and its folder; here it is "
                f"{place}.",
                f"请将其移出工作区并作为基座使用（--base 加目录）；它现在位于 {place}。",
            ),
        )
    command = f"onebase adapters import {shlex.quote(str(folder))} --task {shlex.quote(task)}"
    if (base := _base_in(folder)) is not None:
        command += f" --base {shlex.quote(base)}"
    then, then_zh = "then delete the copy", "然后删除这份副本"
    if at:
        then = f"then remove the copy with: onebase adapters remove {name}"
        then_zh = f"然后删除副本：onebase adapters remove {name}"
    return CorruptFileError(
        say(
            f"{folder} holds an adapter without {RECORD}: it was copied there, not imported.",
            f"{folder} 中的适配器没有 {RECORD}：它是被复制进来的，而不是导入的。",
        ),
        say(f"Import it with: {command} ; {then}", f"请先导入：{command} ；{then_zh}"),
    )


def _base_in(folder: Path) -> str | None:
    """The base that an adapter names, where it could be found by that name."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(name, str) or not name:
        return None
    local = name.startswith((".", "/", "~")) or name.count("/") != 1
    return name if not local or Path(name).is_dir() else None
