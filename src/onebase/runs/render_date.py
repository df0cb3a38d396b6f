"""When a run's rows are rendered. A chat template may write the date, and then that date is part of the
run: resumed on another day, its rows are the same.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from onebase.data.template import Template
from onebase.language import say
from onebase.runs.run import Run

_KEY = "rendered_at"  # of a run's config


def present() -> datetime:
    """The local time, to the second."""
    return datetime.now().replace(microsecond=0)  # naive, as transformers' templates have it


def recorded(moment: datetime) -> dict[str, str]:
    """A moment as a run's config holds it."""
    return {_KEY: moment.isoformat()}


def moment_of(config: Mapping[str, Any]) -> datetime:
    """The moment that a run's config holds; the present one where it holds none."""
    try:
        return datetime.fromisoformat(config[_KEY])
    except (KeyError, TypeError, ValueError):
        return present()


def date_kept(run: Run, template: Template) -> list[str]:
    """What to say where a run that goes on keeps a date that is not today's."""
    moment = template.moment
    if not template.dated or moment is None or moment.date() == present().date():
        return []
    return [
        say(
            f"The chat template writes the date: run {run.id} goes on with {moment:%Y-%m-%d}, on which "
            "it began.",
            f"对话模板会写入日期：训练 {run.id} 继续使用开始时的日期 {moment:%Y-%m-%d}。",
        )
    ]
