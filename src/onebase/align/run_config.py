"""The config of an alignment run, and the interrupted run that it continues."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from onebase.adapters.workspace import Workspace
from onebase.align.job import AlignJob
from onebase.data.rows import read_rows
from onebase.data.template import Template
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.identity import base_config, with_identity
from onebase.runs.render_date import render_date_config
from onebase.runs.resume import interrupted_run
from onebase.runs.run import Run

_ROWS = "rows_sha256"


def align_config(
    kind: str,
    job: AlignJob,
    base: Base,
    options: Sequence[BaseModel],
    hashes: Sequence[str],
    **more: Any,
) -> dict[str, Any]:
    """The config of a run: what was asked for in full, and the hash of what must stay the same."""
    request = {
        **vars(job),
        "data": str(job.data),
        "held_out": None if job.held_out is None else str(job.held_out),
        "columns": dict(job.columns),
        "set": dict(job.set),
        **more,
    }
    if not job.encoding:  # earlier versions did not have it
        del request["encoding"]
    settings = {key: value for item in options for key, value in item.model_dump().items()}
    paths = ("data", "held_out")  # the content of the files matters, not where they are
    same = {
        "kind": kind,
        "asked": {key: value for key, value in request.items() if key not in paths},
        "options": settings,
        "hashes": [
            *hashes,
            None if job.held_out is None else read_rows(job.held_out, encoding=job.encoding).sha256,
        ],
        "base": base.fingerprint,
        "precision": base.precision.text,
    }
    return with_identity(
        {
            "align": kind,
            **base_config(base),
            "job": request,
            "options": settings,
        },
        same,
    )


def earlier_run(
    config: dict[str, Any], workspace: Workspace, *, restart: bool, run_id: str | None
) -> Run | None:
    """The interrupted run of the same config that continues; None for a new run. With a `run_id` it must
    be that run: raises UsageError where its config has changed.
    """
    earlier = None if restart else interrupted_run(workspace, config)
    if run_id is not None and (earlier is None or earlier.id != run_id):
        raise UsageError(
            say(
                f"Run {run_id} can't be resumed: its data, its settings, its base or the adapter that it "
                "started from has changed, or it was started again since.",
                f"训练 {run_id} 无法继续：其数据、设置、基座或起点已改变，或之后已重新开始过。",
            ),
            say(
                "Restore what has changed, or start again with its command.",
                "请恢复原状，或用原来的命令重新开始。",
            ),
        )
    return earlier


def with_rows(
    config: dict[str, Any], earlier: Run | None, template: Template, rows_sha256: str
) -> dict[str, Any]:
    """`config` with the date of rendering and the hash of the rows as tokens. Raises UsageError where the
    `earlier` run had other rows.
    """
    assert template.moment is not None
    if earlier is not None and earlier.config.get(_ROWS) not in (None, rows_sha256):
        raise UsageError(
            say(
                f"Run {earlier.id} can't be resumed: its rows are tokenized differently than before "
                "(another tokenizer, chat template, or version of onebase).",
                f"训练 {earlier.id} 无法继续：数据转换出的词元与之前不同（分词器、对话模板或 onebase 的"
                "版本已改变）。",
            ),
            say(
                "Restore what has changed, or give the command again with --restart.",
                "请恢复原状，或在原来的命令后加 --restart 重新开始。",
            ),
        )
    return {**config, **render_date_config(template.moment), _ROWS: rows_sha256}
