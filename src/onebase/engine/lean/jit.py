"""numba, with its cache among onebase's own files.

numba tells a stale cache by the file of the cached function alone, and a step is compiled from several
files: so the cache's folder is named by a hash of all of them.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from onebase.model.cache import results_root


def _sources() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None where nothing can be written."""
    folder = results_root() / "kernels" / _sources()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def compiled(function: Callable[..., Any]) -> Any:
    """`function` compiled by numba; it releases the GIL and may call other compiled functions."""
    return numba.njit(nogil=True)(function)


def compiled_and_kept(function: Callable[..., Any]) -> Any:
    """As `compiled`, and kept on disk for the next process."""
    folder = cache_folder()
    if folder is None:
        return numba.njit(nogil=True)(function)
    config: Any = numba.config  # its settings are made when it is imported
    config.CACHE_DIR = str(folder)
    return numba.njit(nogil=True, cache=True)(function)
