"""Ctrl-C while a training runs: the first finishes the current step and saves, the second stops at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from onebase.errors import OnebaseError
from onebase.language import say


class Interrupted(OnebaseError, KeyboardInterrupt):
    """A run that Ctrl-C ended."""

    code = "interrupted"
    exit_code = 130


class Interruption:
    """While entered, the first Ctrl-C only sets `asked`; the second is handled by Python as usual.

    Outside the main thread, and where the program handles Ctrl-C itself, nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        self._entered = False

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._ask)
            self._entered = True
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let Python handle Ctrl-C meanwhile: what runs inside is a run of its own, or a process."""
        self.restore()
        try:
            yield
        finally:
            if self._entered:
                signal.signal(signal.SIGINT, self._ask)

    def restore(self) -> None:
        """Let Python handle Ctrl-C again."""
        if self._entered:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        text = say(
            "Stopping after this step; Ctrl-C again stops at once.",
            "将在本步结束后停止；再按一次 Ctrl-C 立即停止。",
        )
        # Not `print`: this may run in the middle of one.
        os.write(2, f"\n{text}\n".encode())
