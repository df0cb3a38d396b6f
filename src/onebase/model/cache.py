"""The cache of base models: where they are stored, and adding one atomically."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from onebase.errors import FolderError
from onebase.language import say


def cache_root() -> Path:
    """`$ONEBASE_CACHE`, by default `~/.cache/onebase`. Raises FolderError if the user has no home folder."""
    root = os.environ.get("ONEBASE_CACHE")
    if root:
        return Path(root)
    try:
        return Path.home() / ".cache" / "onebase"
    except RuntimeError as error:
        raise FolderError(
            say(
                "There is no home folder for base models: HOME is not set.",
                "没有可保存基座模型的主目录：未设置 HOME。",
            ),
            say("Set ONEBASE_CACHE to a folder.", "请将 ONEBASE_CACHE 设为一个目录。"),
        ) from error


def results_root() -> Path:
    """`cache_root` for files that only save time. Without a home folder it is a path below a device,
    where nothing exists and nothing can be written.
    """
    try:
        return cache_root()
    except FolderError:
        return Path(os.devnull) / "onebase"


def models_folder() -> Path:
    """The folder of base models."""
    return cache_root() / "models"


def is_model_folder(folder: Path) -> bool:
    """Whether `folder` holds a model in Hugging Face's layout."""
    return (folder / "config.json").is_file()


def cached_models() -> list[Path]:
    """The complete models in the cache, sorted by name."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith(".") and is_model_folder(path)
    )


def require_writable_cache() -> None:
    """Raise FolderError unless base models can be stored in the cache; creates nothing."""
    folder = models_folder()
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise _not_writable(folder, say(f"{nearest} is a file", f"{nearest} 是文件"))
    if not os.access(nearest, os.W_OK):
        raise _not_writable(folder, say(f"{nearest} is read-only", f"{nearest} 只读"))


def _require_writable(folder: Path) -> None:
    """Make `folder`, or raise FolderError."""
    reason = say("it is read-only", "该目录只读")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
    except OSError as error:
        reason = error.strerror or str(error)
    raise _not_writable(folder, reason)


def _not_writable(folder: Path, reason: str) -> FolderError:
    return FolderError(
        say(
            f"Base models can't be stored in {folder}: {reason}.",
            f"无法将基座模型保存到 {folder}：{reason}。",
        ),
        say(
            "Set ONEBASE_CACHE to a writable folder.",
            "请将 ONEBASE_CACHE 设为可写的目录。",
        ),
    )


def add_to_cache(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, created by `make(folder)` unless it is already a complete model.

    `make` gets an empty folder on the same disk, which is renamed at the end, so an interruption
    at any moment leaves no `target`. Only one process makes it at a time; one that had to wait uses
    the result. Files that a killed process left are deleted. Raises FolderError if the cache can't be
    written to.
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
