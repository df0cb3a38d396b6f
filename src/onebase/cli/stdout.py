"""Keeps stdout free for the command's result while the user's code runs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

_OUT, _ERR = 1, 2


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr, also for child processes."""
    _flush()
    stdout: int | None = None
    with suppress(OSError):  # stdout or stderr is closed: nothing to redirect
        stdout = os.dup(_OUT)
        os.dup2(_ERR, _OUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        if stdout is not None:
            os.dup2(stdout, _OUT)
            os.close(stdout)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
