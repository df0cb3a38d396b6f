"""Where base models are kept, and how one appears there: whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from onebase.errors import FolderError
from onebase.language import say


def cache_root() -> Path:
    """`$ONEBASE_CACHE`, or else `~/.cache/onebase`. Raises FolderError where there is no home folder."""
    root = os.environ.get("ONEBASE_CACHE")
    if root:
        return Path(root)
    try:
        return Path.home() / ".cache" / "onebase"
    except RuntimeError as error:
        raise FolderError(
            say(
                "There is no home folder to keep base models in: HOME is not set.",
                "没有用于保存基座模型的主目录：未设置 HOME。",
            ),
            say("Set ONEBASE_CACHE to a folder.", "请将 ONEBASE_CACHE 设为一个目录。"),
        ) from error


def results_root() -> Path:
    """`cache_root` for what is only kept to save time. Without a home folder it is a path below a
    device, where nothing is found and nothing can be written.
    """
    try:
        return cache_root()
    except FolderError:
        return Path(os.devnull) / "onebase"


def models_folder() -> Path:
    """Where base models are kept."""
    return cache_root() / "models"


def is_model_folder(folder: Path) -> bool:
    """Whether `folder` holds a model in Hugging Face's layout."""
    return (folder / "config.json").is_file()


def cached_models() -> list[Path]:
    """The complete models in the cache, by name."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith(".") and is_model_folder(path)
    )


def require_keepable() -> None:
    """Raise FolderError unless base models can be kept where they should be; nothing is made."""
    folder = models_folder()
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise _not_kept(folder, say(f"{there} is a file", f"{there} 是文件"))
    if not os.access(there, os.W_OK):
        raise _not_kept(folder, say(f"{there} is read-only", f"{there} 只读"))


def _require_writable(folder: Path) -> None:
    """Make `folder`, or raise FolderError."""
    reason = say("it is read-only", "该目录只读")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
    except OSError as error:
        reason = error.strerror or str(error)
    raise _not_kept(folder, reason)


def _not_kept(folder: Path, reason: str) -> FolderError:
    return FolderError(
        say(
            f"Base models can't be kept in {folder}: {reason}.",
            f"无法将基座模型保存到 {folder}：{reason}。",
        ),
        say(
            "Set ONEBASE_CACHE to a folder that can be written to.",
            "请将 ONEBASE_CACHE 设为可写的目录。",
        ),
    )


def appear(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, filled by `make(folder)` unless a complete model is there already.

    `make` gets an empty folder on the same disk, which is renamed at the end, so an interruption
    at any moment leaves no `target`. One process at a time, and one that had to wait takes what
    the other has made; what a killed one left is cleared away. Raises FolderError where the cache
    can't be written to.
    """
    if is_model_folder(target):
        return target
    _require_writable(target.parent)
    partial = target.parent / f".{target.name}.partial"
    with FileLock(target.parent / f".{target.name}.lock"):
        if is_model_folder(target):
            return target
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            make(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target
