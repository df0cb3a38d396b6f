"""A whole comparison on a tiny base: what is trained, on which rows, and what is scored."""

import shutil
import signal
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.compare.tiny_comparison import (
    LORA,
    ONE,
    OPTIONS,
    SETTINGS,
    CtrlC,
    Notes,
    arm_of,
    plain_losses,
    same_outcomes,
)
from tests.conftest import tiny_model

import onebase.compare.compare as compare_module
import onebase.training.train as train_module
from onebase.adapters.methods import METHODS
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.compare.answering import Answerer
from onebase.compare.compare import compare, read_config, resume_comparison
from onebase.compare.data import comparison_data
from onebase.compare.forgetting import neutral_losses, neutral_texts
from onebase.compare.record import load
from onebase.compare.result import BASE, EXAMPLES
from onebase.engine.rows import TokenRow
from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.model.precision import choose
from onebase.runs import render_date
from onebase.runs.interruption import Interrupted
from onebase.runs.observer import Observer
from onebase.runs.render_date import local_time
from onebase.runs.run import Run, RunStore
from onebase.training.job import Job


def test_the_three_parts(job: Job, base: Base) -> None:
    data = comparison_data(job, OPTIONS, base, local_time())
    parts = [
        {example.input for example in part}
        for part in (
            data.training.train_examples,
            data.training.held_out_examples,
            data.examples,
        )
    ]
    # A quarter of 24 inputs, then a tenth of the other 18.
    assert [len(part) for part in parts] == [16, 2, 6]
    assert len(set.union(*parts)) == 24
    assert len(data.training.train) == 16
    assert len(data.rows) == 6


def test_losses_are_those_of_peft_and_of_transformers(
    job: Job, base: Base, workspace: Workspace
) -> None:
    comparison = compare(job, OPTIONS, base=base, workspace=workspace)
    data = comparison_data(job, OPTIONS, base, local_time())
    rows = list(data.rows)
    bare = [outcome.loss for outcome in arm_of(comparison, BASE, None).outcomes]
    assert bare == pytest.approx(plain_losses(tiny_model("llama"), rows), abs=1e-5)
    trained = AdapterStore(Workspace(workspace.runs / comparison.run / "trained"))
    for seed in (0, 1):
        (stored,) = trained.list(f"lora-{seed}")
        model = peft.PeftModel.from_pretrained(tiny_model("llama"), stored.path).eval()
        losses = [outcome.loss for outcome in arm_of(comparison, "lora", seed).outcomes]
        assert losses == pytest.approx(plain_losses(model, rows), abs=1e-5)
        assert losses != pytest.approx(bare, abs=1e-3)


def test_examples_stand_in_the_prompt(job: Job, base: Base, workspace: Workspace) -> None:
    comparison = compare(job, replace(OPTIONS, methods=()), base=base, workspace=workspace)
    data = comparison_data(job, OPTIONS, base, local_time())
    for seed in (0, 1):
        shown = [turn for example in data.shown_examples(2, seed) for turn in example]
        training = {(example.input, example.answer) for example in data.training.train_examples}
        assert {
            (shown[0].content, shown[1].content),
            (shown[2].content, shown[3].content),
        } < training
        rows = []
        for example in data.examples:
            prompt = data.template.prompt([*shown, *example.turns[:-1]])
            answer = data.template.answer_ids(example.answer)
            mask = (False,) * len(prompt) + (True,) * len(answer)
            rows.append(TokenRow(None, (*prompt, *answer), mask))
        losses = [outcome.loss for outcome in arm_of(comparison, EXAMPLES, seed).outcomes]
        assert losses == pytest.approx(plain_losses(tiny_model("llama"), rows), abs=1e-5)
    assert data.shown_examples(2, 0) != data.shown_examples(2, 1)


def test_alone_and_together_are_the_same(job: Job, base: Base, tmp_path: Path) -> None:
    together = compare(job, OPTIONS, base=base, workspace=Workspace(tmp_path / "together"))
    alone = compare(
        job, replace(OPTIONS, alone=True), base=base, workspace=Workspace(tmp_path / "alone")
    )
    for method in OPTIONS.methods:
        one, other = arm_of(together, method), arm_of(alone, method)
        assert [outcome.loss for outcome in one.outcomes] == pytest.approx(
            [outcome.loss for outcome in other.outcomes], abs=1e-4
        )
        assert [point.loss for point in one.curve] == pytest.approx(
            [point.loss for point in other.curve], abs=1e-4
        )
        assert one.cost is None
        assert other.cost is not None
        assert other.cost.peak_memory_bytes > 100 << 20
        assert other.cost.cpu_seconds > 0
        assert arm_of(alone, method, 1).cost is None


def test_labels_are_scored(labelled: Job, base: Base, workspace: Workspace) -> None:
    comparison = compare(labelled, LORA, base=base, workspace=workspace)
    assert (comparison.kind, comparison.metric) == ("classification", "accuracy")
    for arm in comparison.arms:
        right = [
            outcome.answer == row.reference
            for outcome, row in zip(arm.outcomes, comparison.held_out, strict=True)
        ]
        assert [outcome.scores["accuracy"] for outcome in arm.outcomes] == right
        assert arm.metrics["accuracy"] == sum(right) / len(right)
        assert {outcome.answer for outcome in arm.outcomes} <= {"0", "1"}


def test_what_is_measured_beside(job: Job, base: Base, workspace: Workspace) -> None:
    comparison = compare(job, OPTIONS, base=base, workspace=workspace)
    lora = arm_of(comparison, "lora")
    trained = AdapterStore(Workspace(workspace.runs / comparison.run / "trained"))
    (stored,) = trained.list("lora-0")
    assert lora.trainable == stored.metrics["trainable"]
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    assert lora.trainable_percent == pytest.approx(100 * lora.trainable / parameters)
    assert lora.adapter_bytes == stored.bytes
    assert [point.tokens for point in lora.training_losses] == sorted(
        {point.tokens for point in lora.training_losses}
    )
    assert len(lora.training_losses) == 8  # 16 rows by 4, two epochs
    assert [point.tokens for point in lora.curve] == [
        0,
        *[lora.curve[-1].tokens // 2 * n for n in (1, 2)],
    ]
    assert lora.settings["learning_rate"] == METHODS["lora"].learning_rate
    for language, forgetting in lora.forgetting.items():
        texts = [base.tokenizer(text)["input_ids"] for text in neutral_texts(language)]
        rows = [TokenRow(None, tuple(ids), (True,) * len(ids)) for ids in texts]
        assert forgetting.before == neutral_losses(base)[language]
        model = peft.PeftModel.from_pretrained(tiny_model("llama"), stored.path).eval()
        for loss, plain in ((forgetting.before, tiny_model("llama")), (forgetting.after, model)):
            labels = [row.labels for row in rows]
            masked = [replace(row, loss_mask=(False, *row.loss_mask[1:])) for row in rows]
            sums = [
                one * count for one, count in zip(plain_losses(plain, masked), labels, strict=True)
            ]
            assert loss == pytest.approx(sum(sums) / sum(labels), abs=1e-5)
    assert lora.tokens_per_second is not None
    assert lora.load_seconds is not None
    assert arm_of(comparison, "lora", 1).tokens_per_second is None


def test_arms_are_measured_once(job: Job, base: Base, workspace: Workspace) -> None:
    first = compare(job, LORA, base=base, workspace=workspace)
    notes = Notes()
    second = compare(job, OPTIONS, base=base, workspace=workspace, observer=notes)
    assert second.run != first.run
    for arm in second.arms:
        assert arm.reused == (arm.method != "p-tuning-v2")
    assert arm_of(second, "lora").outcomes == arm_of(first, "lora").outcomes
    assert sum(first.run in text for text in notes.texts) == 5
    # Other settings are another arm.
    changed = replace(job, set={**SETTINGS, "rank": 3})
    third = compare(changed, LORA, base=base, workspace=workspace)
    assert [arm.reused for arm in third.arms] == [True, True, True, False, False]


@pytest.mark.parametrize("at", [1, 4])
def test_an_interrupted_comparison_continues(
    at: int, job: Job, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare(job, OPTIONS, base=base, workspace=Workspace(tmp_path / "whole"))
    workspace = Workspace(tmp_path / "cut")
    calls = []
    measured = Answerer._outcomes

    def cut_off(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return measured(self, *arguments)

    monkeypatch.setattr(Answerer, "_outcomes", cut_off)
    with pytest.raises(Interrupted, match="onebase resume"):
        compare(job, OPTIONS, base=base, workspace=workspace)
    (run,) = RunStore(workspace).list()
    assert run.resumable
    continued = resume_comparison(run.id, base=base, workspace=workspace)
    assert continued.run == run.id
    assert not any(arm.reused for arm in continued.arms)
    for arm in whole.arms:
        assert same_outcomes(arm_of(continued, arm.method, arm.seed), arm)
    # Nothing was trained twice.
    inner = RunStore(Workspace(run.path / "trained")).list()
    assert len(inner) == 1
    assert load(run.path) == continued


def test_ctrl_c_while_training(job: Job, base: Base, workspace: Workspace, tmp_path: Path) -> None:
    class Cut(Observer):
        def step(self, task: str, step: int, record: Any) -> None:
            if step == 3:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="onebase resume"):
        compare(job, OPTIONS, base=base, workspace=workspace, observer=Cut())
    (run,) = RunStore(workspace).list()
    continued = compare(job, OPTIONS, base=base, workspace=workspace)  # the same call
    assert continued.run == run.id
    whole = compare(job, OPTIONS, base=base, workspace=Workspace(tmp_path / "whole"))
    for arm in whole.arms:
        assert same_outcomes(arm_of(continued, arm.method, arm.seed), arm)


def test_a_method_that_diverges_is_reported_and_the_others_go_on(
    job: Job, base: Base, workspace: Workspace
) -> None:
    wild = replace(job, set={**SETTINGS, "lora.learning_rate": 1e30, "lora.warmup": 0})
    comparison = compare(wild, replace(OPTIONS, seeds=1), base=base, workspace=workspace)
    lora = arm_of(comparison, "lora")
    assert (lora.diverged, lora.outcomes) == (True, ())
    assert arm_of(comparison, "p-tuning-v2").outcomes
    assert comparison.arms_of("lora") == []


def test_the_config_makes_it_again(job: Job, base: Base, workspace: Workspace) -> None:
    comparison = compare(job, LORA, base=base, workspace=workspace)
    again, options, _, _ = read_config(workspace.runs / comparison.run / "config.yaml")
    assert options == LORA
    assert (again.task, again.set, again.instruction) == (job.task, job.set, job.instruction)
    shutil.rmtree(workspace.runs)
    repeated = compare(again, options, base=base, workspace=workspace)
    for arm in comparison.arms:
        assert same_outcomes(arm_of(repeated, arm.method, arm.seed), arm)


def test_an_unknown_metric(job: Job, base: Base, workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="'accuracy'"):
        compare(job, replace(OPTIONS, metric="accuracy"), base=base, workspace=workspace)
    assert not workspace.runs.exists()


@pytest.fixture
def stopped(job: Job, base: Base, workspace: Workspace) -> Run:
    """An interrupted comparison."""
    with pytest.raises(Interrupted):
        compare(job, ONE, base=base, workspace=workspace, observer=CtrlC(1))
    (run,) = RunStore(workspace).list()
    return run


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("part", ["data", "set", "metric", "base"])
def test_another_comparison_is_not_resumed(
    part: str, stopped: Run, job: Job, base: Base, workspace: Workspace
) -> None:
    config = stopped.path / "config.yaml"
    if part == "data":
        changed(Path(job.data), ' 3"', ' 33"')
        named = "its rows"
    elif part == "set":  # the rows stay the same
        changed(config, "    epochs: 2\n", "    epochs: 3\n")
        named = "the settings in its config.yaml"
    elif part == "metric":
        changed(config, "  metric: null\n", "  metric: chrf\n")
        named = "the settings in its config.yaml"
    else:
        base.__dict__["content"] = "another"
        named = "the weights of the base"
    with pytest.raises(UsageError, match=f"changed since it began: {named}") as refused:
        resume_comparison(stopped.id, base=base, workspace=workspace)
    assert "onebase compare" in refused.value.remedy
    assert RunStore(workspace).get(stopped.id).resumable


def test_what_did_not_change_is_resumed(stopped: Run, base: Base, workspace: Workspace) -> None:
    continued = resume_comparison(stopped.id, base=base, workspace=workspace)
    assert continued.run == stopped.id


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("  seeds: 1\n", "  seedz: 1\n", "'seedz'.*'seeds'"),
        ("  seeds: 1\n", "  seeds: '1'\n", "compare.seeds: .*integer"),
        ("  seeds: 1\n", "  seeds: three\n", "compare.seeds: .*integer"),
        ("  seeds: 1\n", "  seeds: 0\n", "seeds=0 is not valid"),
        ("  methods:\n  - lora\n", "  methods: lora\n", "compare.methods"),
        ("  task: zs\n", "", "job.task: Field required"),
        ("  seed: 0\n", "  seed: zero\n", "job.seed"),
        ("  skip_bad: false\n", "  skip_bad: 3\n", "job.skip_bad"),
        ("precision: fp32\n", "precision: 32\n", "precision: 32"),
        ("compare:\n", "compared:\n", "it has no compare"),
    ],
)
def test_an_edited_config(
    old: str, new: str, named: str, stopped: Run, job: Job, base: Base
) -> None:
    config = stopped.path / "config.yaml"
    changed(config, old, new)
    with pytest.raises(UsageError, match=named) as refused:
        read_config(config)
    assert str(config) in refused.value.message


def test_a_file_that_is_no_config(tmp_path: Path) -> None:
    for text in ("- 3\n", "3\n", "", "jobs: []\n"):
        (tmp_path / "other.yaml").write_text(text)
        with pytest.raises(UsageError, match=r"other\.yaml"):
            read_config(tmp_path / "other.yaml")


def test_on_another_day(
    job: Job, base: Base, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.tokenizer.chat_template = "{{ strftime_now('%d %b') }}\n" + base.tokenizer.chat_template

    def on_day(day: int) -> None:
        moment = datetime(2026, 11, day, 12)
        for module in (compare_module, render_date, train_module):
            monkeypatch.setattr(module, "local_time", lambda: moment)

    def begin() -> Run:
        on_day(26)
        with pytest.raises(Interrupted):
            compare(job, ONE, base=base, workspace=workspace, observer=CtrlC(1))
        on_day(27)
        return RunStore(workspace).list()[-1]

    run, notes = begin(), Notes()
    again = compare(job, ONE, base=base, workspace=workspace, observer=notes)
    assert again.run == run.id
    assert any("continues with 2026-11-26" in text for text in notes.texts)
    shutil.rmtree(workspace.runs)
    run = begin()
    resumed = resume_comparison(run.id, base=base, workspace=workspace)
    assert resumed.run == run.id
    for arm in again.arms:
        assert same_outcomes(arm_of(resumed, arm.method, arm.seed), arm)


@pytest.mark.parametrize("precision", ["w8a8", "nf4", "int8"])
def test_what_can_t_be_trained_on_this_base(
    precision: str, job: Job, base: Base, workspace: Workspace
) -> None:
    base.precision = choose(precision, device="cpu", stored=torch.float32)
    options = replace(ONE, methods=("lora", "full"))
    with pytest.raises(UsageError, match="w8a8" if precision == "w8a8" else "full trains every"):
        compare(job, options, base=base, workspace=workspace)
    assert not workspace.runs.exists()


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("task", "base", "base"),
        ("seed", -1, "seed=-1"),
        ("set", {"lora.max_tokens": 9}, "same rows"),
    ],
)
def test_jobs_that_are_refused(
    field: str, value: Any, named: str, job: Job, base: Base, workspace: Workspace
) -> None:
    with pytest.raises(UsageError, match=named):
        compare(replace(job, **{field: value}), ONE, base=base, workspace=workspace)
    assert not workspace.runs.exists()
