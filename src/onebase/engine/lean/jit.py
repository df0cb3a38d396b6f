"""numba, with its cache in onebase's cache folder.

numba detects a stale cache only by the file of the cached function, but a step is compiled from several
files. The name of the cache folder therefore contains a hash of all of them.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba

from onebase.model.cache import results_root


def _source_hash() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path | None:
    """The folder of compiled kernels; None if it is not writable."""
    folder = results_root() / "kernels" / _source_hash()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def compiled(function: Callable[..., Any]) -> Any:
    """`function` compiled by numba. It releases the GIL and may call other compiled functions."""
    return numba.njit(nogil=True)(function)


def by_count(functions: Iterable[Any]) -> Any:
    """A compiled function that calls one of four, by its first argument, 4, 3, 2 or 1."""
    four, three, two, one = functions

    @compiled
    def call(count, *arguments):  # type: ignore[no-untyped-def]
        if count == 4:
            four(*arguments)
        elif count == 3:
            three(*arguments)
        elif count == 2:
            two(*arguments)
        else:
            one(*arguments)

    return call


def compiled_and_cached(function: Callable[..., Any]) -> Any:
    """As `compiled`, and cached on disk for the next process."""
    folder = cache_folder()
    if folder is None:
        return numba.njit(nogil=True)(function)
    config: Any = numba.config  # numba defines its settings at import, so they have no static types
    config.CACHE_DIR = str(folder)
    return numba.njit(nogil=True, cache=True)(function)
