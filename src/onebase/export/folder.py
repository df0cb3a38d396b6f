"""Creating an output folder atomically."""

import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil

from onebase.data.utf8_paths import shown_if_not_utf8
from onebase.errors import UsageError
from onebase.language import say


def check_new(out: Path) -> None:
    """Raise UsageError unless a folder `out` can be created without changing existing files."""
    if shown := shown_if_not_utf8(out):
        raise UsageError(
            say(f"The path {shown} is not UTF-8.", f"路径 {shown} 不是 UTF-8。"),
            say("Give a folder with another name.", "请换一个名称的目录。"),
        )
    if out.exists() and not out.is_dir():
        raise UsageError(
            say(f"{out} is a file.", f"{out} 是一个文件。"),
            say(
                "Give an empty folder or one that does not exist yet.",
                "请给出空目录或尚不存在的目录。",
            ),
        )
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(
            say(f"The folder {out} is not empty.", f"目录 {out} 不是空的。"),
            say(
                "Existing files are not overwritten. Give another folder, or empty this one.",
                "导出不会覆盖已有文件。请换一个目录，或先清空它。",
            ),
        )


def new_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Create `out` from the files that `write(folder)` writes into a hidden folder beside it.

    That folder is renamed at the end, so an interruption at any moment leaves no `out`. Hidden folders
    of killed processes are deleted. Raises UsageError as check_new does.
    """
    check_new(out)
    target = out.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        write(partial)
        check_new(target)  # it may have been filled meanwhile
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Delete the hidden folders that killed processes left for `target`."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        process = path.name.split(".")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path, ignore_errors=True)
