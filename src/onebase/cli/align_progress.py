"""The live display of an alignment: a bar, or lines where there is no terminal."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from onebase.cli.progress import bars
from onebase.cli.session import note
from onebase.cli.training import Stopped
from onebase.language import say
from onebase.runs.interruption import Interrupted


class AlignDisplay:
    """A bar on a terminal; elsewhere a line for every judgement, and for every tenth of the steps."""

    _SHOWN = ("loss", "reward", "kl", "pair_accuracy", "margin", "entropy")
    _JUDGED = ("eval_loss", "pair_accuracy", "eval_reward", "eval_kl", "margin")

    def __init__(self) -> None:
        self._progress = bars()
        self._bar = self._progress.add_task("", total=1, numbers="")
        self._total = 1
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._progress.stop()

    def began(self, title: str, step: int, total: int) -> None:
        """Draw the bar."""
        self._total = total
        self._progress.update(self._bar, description=title, total=total, completed=step)

    def measured(self, step: int, record: Mapping[str, Any]) -> None:
        """Move the bar, or print a line."""
        judged = any(key.startswith("eval_") for key in record)
        keys = self._JUDGED if judged else self._SHOWN
        numbers = "  ".join(f"{key} {record[key]:.3f}" for key in keys if key in record)
        self._progress.update(self._bar, completed=step, numbers=numbers)
        if not self._live and (judged or step % max(1, self._total // 10) == 0):
            note(say(f"step {step}/{self._total}: ", f"第 {step}/{self._total} 步：") + numbers)

    def noted(self, text: str) -> None:
        """A sentence."""
        note(text)


@contextmanager
def align_display() -> Iterator[AlignDisplay]:
    """The display of a run, whose interruption says how to go on. Raises Stopped."""
    try:
        with AlignDisplay() as display:
            yield display
    except Interrupted as stop:
        raise Stopped(stop.message, stop.remedy) from stop
