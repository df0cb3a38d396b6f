"""The rows of a comparison: what is refused and noted before any training, and what identifies them."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.compare.tiny_comparison import LORA, OPTIONS, SETTINGS, labelled_rows, written

from onebase.adapters.workspace import Workspace
from onebase.compare.compare import compare
from onebase.compare.data import comparison_data
from onebase.errors import DataError
from onebase.language import set_language
from onebase.model.base import Base
from onebase.runs.render_date import local_time
from onebase.training.job import Job


def notes_of(job: Job, base: Base) -> list[str]:
    return list(comparison_data(job, LORA, base, local_time()).training.notes)


def test_a_held_out_row_beyond_the_context(tmp_path: Path, base: Base) -> None:
    rows = [{"input": f"say {n}", "output": "yes"} for n in range(8)]
    held_out = [rows[0], {"input": "much " * 900, "output": "no"}]
    base.model.config.max_position_embeddings = 300
    job = Job(
        "zs",
        written(tmp_path / "a.jsonl", rows),
        held_out=written(tmp_path / "long.jsonl", held_out),
        set={**SETTINGS, "max_tokens": 2000},
    )
    workspace = Workspace(tmp_path / "w")
    with pytest.raises(DataError, match=r"long\.jsonl:2 has \d+ tokens.*Set max_tokens below 300"):
        compare(job, LORA, base=base, workspace=workspace)
    assert not workspace.runs.exists()
    cut = replace(job, set={**SETTINGS, "max_tokens": 299})
    data = comparison_data(cut, LORA, base, local_time())
    assert [len(row.ids) <= 299 for row in data.rows] == [True, True]


def test_labels_that_no_training_row_has(tmp_path: Path, base: Base) -> None:
    rows = labelled_rows(12)
    seen = written(tmp_path / "seen.jsonl", rows[:2])
    data = written(tmp_path / "a.jsonl", rows)
    job = Job("late", data, held_out=seen, set=SETTINGS)
    assert notes_of(job, base) == []
    others = [{"text": f"parcel {n}", "label": label} for n, label in enumerate("0zyz")]
    unseen = written(tmp_path / "unseen.jsonl", others)
    job = replace(job, held_out=unseen)
    assert notes_of(job, base) == [
        "3 held-out rows have a label that no training row has, so no method can learn it: z, y."
    ]
    set_language("zh")
    assert notes_of(job, base) == ["3 条留出数据的标签未在训练数据中出现，任何方法都学不到：z、y。"]


def test_a_dated_template_does_not_change_the_rows(job: Job, base: Base) -> None:
    def digest(day: int) -> str:
        return comparison_data(job, OPTIONS, base, datetime(2026, 11, day)).digest()

    before = digest(26)
    assert digest(27) == before
    base.tokenizer.chat_template = "{{ strftime_now('%d') }}\n" + base.tokenizer.chat_template
    assert digest(26) != before  # by texts alone
    assert digest(27) == digest(26)


@pytest.mark.parametrize("part", ["training", "held out"])
def test_the_digest_is_of_all_parts(part: str, tmp_path: Path, base: Base) -> None:
    rows: list[dict[str, Any]] = [{"input": f"say {n}", "output": "yes"} for n in range(8)]
    job = Job(
        "zs",
        written(tmp_path / "a.jsonl", rows),
        held_out=written(tmp_path / "b.jsonl", rows[:2]),
        set=SETTINGS,
    )
    before = comparison_data(job, LORA, base, local_time())
    file = tmp_path / ("a.jsonl" if part == "training" else "b.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    written(file, [*map(json.loads, lines[:-1]), {"input": "say it", "output": "no"}])
    after = comparison_data(job, LORA, base, local_time())
    assert after.digest() != before.digest()
