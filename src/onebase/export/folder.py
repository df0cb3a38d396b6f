"""A new folder for the user: there whole, or not at all."""

import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil

from onebase.data.paths import shown_if_not_utf8
from onebase.errors import UsageError
from onebase.language import say


def check_new(out: Path) -> None:
    """Raise UsageError unless a folder `out` can be made without touching what is there."""
    if shown := shown_if_not_utf8(out):
        raise UsageError(
            say(f"The path {shown} is not UTF-8.", f"路径 {shown} 不是 UTF-8。"),
            say("Give a folder with another name.", "请换一个名称的目录。"),
        )
    if out.exists() and not out.is_dir():
        raise UsageError(
            say(f"{out} is a file.", f"{out} 是一个文件。"),
            say("Give a folder that is empty or not there yet.", "请给出空目录或尚不存在的目录。"),
        )
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(
            say(f"The folder {out} is not empty.", f"目录 {out} 不是空的。"),
            say(
                "Nothing of yours is overwritten: give another folder, or empty this one.",
                "导出不会覆盖已有文件：请换一个目录，或先清空它。",
            ),
        )


def new_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Make `out` from what `write(folder)` puts into a hidden folder beside it.

    That folder is renamed at the end, so an interruption at any moment leaves no `out`; what a
    killed process left beside it is cleared away. Raises UsageError as check_new.
    """
    check_new(out)
    target = out.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        write(partial)
        check_new(target)  # it may have been filled in the meantime
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what killed processes left half written for `target`."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        process = path.name.split(".")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path, ignore_errors=True)
