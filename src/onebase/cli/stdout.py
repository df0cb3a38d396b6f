"""Standard output, which has a command's result alone, while code of the user's runs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

_OUT, _ERR = 1, 2


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """What is printed meanwhile goes to stderr, also by the processes that are started meanwhile."""
    _flush()
    kept: int | None = None
    with suppress(OSError):  # a closed stdout or stderr: there is nothing to keep apart
        kept = os.dup(_OUT)
        os.dup2(_ERR, _OUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        if kept is not None:
            os.dup2(kept, _OUT)
            os.close(kept)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
