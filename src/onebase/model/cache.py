"""Where base models are kept, and how one appears there: whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def cache_root() -> Path:
    """`$ONEBASE_CACHE`, or else `~/.cache/onebase`."""
    root = os.environ.get("ONEBASE_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "onebase"


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


def appear(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, filled by `make(folder)` unless a complete model is there already.

    `make` gets an empty folder on the same disk, which is renamed at the end, so an interruption
    at any moment leaves no `target`. One process at a time, and one that had to wait takes what
    the other has made; what a killed one left is cleared away.
    """
    if is_model_folder(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
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
