"""What the identity of an arm rests on: only what was measured in the same way is used again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from tests.compare.tiny_comparison import LORA, OPTIONS, SETTINGS
from tests.conftest import tiny_model, tiny_tokenizer

from onebase.adapters.methods import METHODS
from onebase.compare.compare import compare
from onebase.compare.data import ComparisonData, comparison_data
from onebase.compare.options import CompareOptions
from onebase.compare.planned_arm import planned_arms
from onebase.model.base import Base
from onebase.runs.render_date import local_time
from onebase.training.job import Job
from onebase.training.options import TrainOptions


def identities(
    job: Job, base: Base, options: CompareOptions = LORA, data: ComparisonData | None = None
) -> list[str]:
    """Of the base, of it with examples (seeds 0, 1), and of lora (seeds 0, 1)."""
    data = data or comparison_data(job, options, base, local_time())
    return [arm.identity for arm in planned_arms(job, options, base, data)]


def same(one: list[str], other: list[str]) -> list[bool]:
    return [mine == yours for mine, yours in zip(one, other, strict=True)]


@pytest.fixture
def merged_folder(tmp_path: Path) -> Path:
    """The tiny base with another weight in one linear layer, as a merged adapter leaves it."""
    model: Any = tiny_model("llama")
    model.model.layers[0].self_attn.q_proj.weight.data[0] += 1
    model.save_pretrained(tmp_path / "merged")
    tiny_tokenizer().save_pretrained(tmp_path / "merged")
    return tmp_path / "merged"


def test_a_merged_base_is_another_base(job: Job, base: Base, merged_folder: Path) -> None:
    merged = Base.load(str(merged_folder))
    assert merged.fingerprint == base.fingerprint
    assert same(identities(job, base), identities(job, merged)) == [False] * 5


def test_settings_are_those_of_the_methods(job: Job, base: Base) -> None:
    before = identities(job, base)
    rank = replace(job, set={**SETTINGS, "rank": 3})
    assert same(before, identities(rank, base)) == [True, True, True, False, False]
    default = replace(job, set={**SETTINGS, "rank": 8})
    assert same(before, identities(default, base)) == [True] * 5
    rate = replace(job, set={**SETTINGS, "lora.learning_rate": 0.5})
    assert same(before, identities(rate, base)) == [True, True, True, False, False]
    # Another seed: other validation rows.
    assert same(before, identities(replace(job, seed=1), base)) == [False] * 5


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [(TrainOptions, "weight_decay", 0.125), (METHODS["lora"].options, "rank", 7)],
)
def test_another_default_is_another_setting(
    options: Any, name: str, value: float, job: Job, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identities(job, base)
    field: FieldInfo = options.model_fields[name]
    monkeypatch.setattr(field, "default", value)
    options.model_rebuild(force=True)
    try:
        assert same(before, identities(job, base)) == [True, True, True, False, False]
    finally:
        monkeypatch.undo()
        options.model_rebuild(force=True)
    assert identities(job, base) == before


def test_another_default_rate_is_another_setting(
    job: Job, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identities(job, base)
    monkeypatch.setitem(METHODS, "lora", replace(METHODS["lora"], learning_rate=0.5))
    assert same(before, identities(job, base)) == [True, True, True, False, False]


def test_what_is_asked_for(job: Job, base: Base) -> None:
    before = identities(job, base)
    assert identities(job, base, replace(LORA, answer_tokens=5)) != before
    assert same(before, identities(job, base, replace(LORA, answer_tokens=5))) == [False] * 5
    # Only what trains in a process of its own is measured in another way.
    alone = identities(job, base, replace(LORA, alone=True))
    assert same(before, alone) == [True, True, True, False, True]
    more = identities(job, base, replace(LORA, examples=3))
    assert same(before, more) == [True, False, False, True, True]
    tuned = identities(job, base, replace(LORA, tune=1000))
    assert same(before, tuned) == [True, True, True, False, False]
    # The same answers are scored by another metric.
    assert identities(job, base, replace(LORA, metric="chrf")) == before
    assert identities(job, base, replace(LORA, user_metric="scores:f")) == before
    assert set(before) < set(identities(job, base, replace(OPTIONS, seeds=3)))


def test_labels_are_scored_in_another_way(labelled: Job, base: Base) -> None:
    data = comparison_data(labelled, LORA, base, local_time())
    before = identities(labelled, base, data=data)
    dataset = replace(data.training.dataset, labels=())
    generated = replace(data, training=replace(data.training, dataset=dataset))
    assert generated.kind == "generation"
    assert same(before, identities(labelled, base, data=generated)) == [False] * 5
    dataset = replace(data.training.dataset, labels=("0", "1", "2"))
    wider = replace(data, training=replace(data.training, dataset=dataset))
    assert same(before, identities(labelled, base, data=wider)) == [False] * 5


def test_a_changed_metric_uses_what_was_measured(job: Job, base: Base, workspace: Any) -> None:
    quick = replace(LORA, seeds=1)
    first = compare(job, quick, base=base, workspace=workspace)
    second = compare(job, replace(quick, metric="chrf"), base=base, workspace=workspace)
    assert second.run != first.run
    assert second.metric == "chrf"
    assert all(arm.reused for arm in second.arms)
