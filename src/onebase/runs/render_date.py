"""The date that a run's rows are rendered with. A chat template may write the date; it is then part of
the run, so that a run which is resumed on another day has the same rows.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from onebase.data.template import Template
from onebase.language import say
from onebase.runs.run import Run

_KEY = "rendered_at"  # of a run's config


def local_time() -> datetime:
    """The local time, to the second."""
    return datetime.now().replace(microsecond=0)  # naive, as in the templates of transformers


def render_date_config(rendered_at: datetime) -> dict[str, str]:
    """The entry of a run's config."""
    return {_KEY: rendered_at.isoformat()}


def render_date_of(config: Mapping[str, Any]) -> datetime:
    """The date in a run's config; the present time where it has none."""
    try:
        return datetime.fromisoformat(config[_KEY])
    except (KeyError, TypeError, ValueError):
        return local_time()


def earlier_date_notes(run: Run, template: Template) -> list[str]:
    """A note that a resumed run keeps its date, unless that is today's."""
    rendered_at = template.moment
    if not template.dated or rendered_at is None or rendered_at.date() == local_time().date():
        return []
    return [
        say(
            f"The chat template writes the date: run {run.id} continues with {rendered_at:%Y-%m-%d}, "
            "the day on which it began.",
            f"对话模板会写入日期：训练 {run.id} 继续使用开始时的日期 {rendered_at:%Y-%m-%d}。",
        )
    ]
