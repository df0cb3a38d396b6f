"""DPO: its losses through the one pass against PEFT-free arithmetic, learning, going on."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.align.conftest import as_format_1

import onebase
from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.answers import PromptAnswer, sum_by_row
from onebase.align.dpo import train_dpo
from onebase.align.job import AlignJob
from onebase.align.kto import train_kto
from onebase.align.preference_data import PreferenceRow, load_rows, preference_data
from onebase.align.resume import resume_aligned
from onebase.align.start import start_from
from onebase.engine.rows import read_rows
from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.runs.checkpointer import Checkpointer
from onebase.runs.observer import Observer
from onebase.training.trainable_adapter import NotFinite, TrainableAdapter

METHODS = ["lora", "prompt-tuning", "p-tuning", "p-tuning-v2", "ia3", "lora+p-tuning-v2"]


def test_answers_have_the_plain_models_log_probabilities(
    make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    base = make_base()
    one = PromptAnswer((5, 17, 33), (40, 41, 2))
    other = PromptAnswer((5, 17, 33), (50,))
    rows = [one.logprob_row(None), other.logprob_row(None)]
    with torch.no_grad():
        output, placed = read_rows(base, rows, {})
        logits = plain_model("llama")(input_ids=torch.tensor([one.ids])).logits[0].log_softmax(-1)
    expected = sum(float(logits[2 + at, token]) for at, token in enumerate(one.answer))
    sums = sum_by_row(output, placed, 2)
    assert float(sums[0]) == pytest.approx(expected, abs=1e-4)
    assert float(sums[1]) == pytest.approx(float(logits[2, 50]), abs=1e-4)


def job(data: Path, method: str | None = "lora", **settings: Any) -> AlignJob:
    tokens = {"virtual_tokens": 6} if method and "p" in method and method != "lora" else {}
    return AlignJob(
        "desk",
        data,
        method,
        instruction="Say where it is.",
        set={
            "epochs": 4,
            "batch_size": 4,
            "max_tokens": 128,
            "held_out": 0.25,
            **settings,
            **tokens,
        },
    )


def held_out_rewards(
    asked: AlignJob, kind: Any, stored: StoredAdapter, base: Base
) -> tuple[list[PreferenceRow], Callable[[PromptAnswer], float]]:
    """The held-out rows of a stored run, and the implicit reward of an answer, beta 0.1: one answer a
    pass, with the stored weights and a reference built anew.
    """
    start = start_from(asked, base, Workspace(stored.path / "none"), max_tokens=128)
    fraction = asked.set.get("held_out", 0.1)
    data = preference_data(asked, base, load_rows(asked, (kind,)), start, fraction)
    policy = load_adapter(stored.path, base).eval()

    def logprob(adapter: Adapter, answer: PromptAnswer) -> float:
        with torch.no_grad():
            output, _ = read_rows(base, [answer.logprob_row("a")], {"a": adapter.contribution()})
        return -float(output.losses.double().sum())

    reference = start.adapter.eval()
    return data.held_out, lambda one: 0.1 * (logprob(policy, one) - logprob(reference, one))


def require_dpo_metrics(asked: AlignJob, stored: StoredAdapter, base: Base, pairs: int) -> None:
    """That every held-out pair was learned, and that the record is right about the stored weights."""
    rows, reward = held_out_rewards(asked, "pairs", stored, base)
    margins = [reward(row.answers[0]) - reward(row.answers[1]) for row in rows]
    loss = sum(math.log1p(math.exp(-margin)) for margin in margins) / pairs
    assert len(margins) == pairs
    assert min(margins) > 0.1
    metrics = stored.metrics
    assert metrics["base_eval_loss"] == pytest.approx(math.log(2), abs=1e-6)  # the reference itself
    assert metrics["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert metrics["margin"] == pytest.approx(sum(margins) / pairs, abs=1e-5)
    assert metrics["pair_accuracy"] == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_pairs(
    method: str, pairs: Path, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    rate = {"lora": 2e-3, "ia3": 2e-2, "p-tuning-v2": 5e-2}.get(method, 1e-2)
    base, asked = make_base(), job(pairs, method, learning_rate=rate)
    stored = train_dpo(asked, base=base, workspace=Workspace(tmp_path / "w"))
    require_dpo_metrics(asked, stored, base, pairs=6)


def test_it_begins_from_the_tasks_adapter_and_stores_the_next_version(
    pairs: Path, write: Callable[..., Path], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base, workspace = make_base(), Workspace(tmp_path / "w")
    rows = [{"question": f"where is {i}", "answer": "on its way"} for i in range(8)]
    task = onebase.Job("desk", write("desk.jsonl", rows), "lora", "Say it.", set={"epochs": 1})
    onebase.train([task], base=base, workspace=workspace)
    stored = train_dpo(job(pairs, None), base=base, workspace=workspace)
    assert stored.name == "desk@2"
    assert stored.current
    assert stored.record["reference"] == "desk@1"
    assert stored.record["template"] == AdapterStore(workspace).get("desk@1").record["template"]
    again = train_dpo(
        AlignJob("desk", pairs, start="desk@1", set={"max_tokens": 128}),
        base=base,
        workspace=workspace,
    )
    assert again.record["reference"] == "desk@1"


def test_a_task_without_an_adapter_needs_a_method(
    pairs: Path, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="'desk' has no adapter"):
        train_dpo(job(pairs, None), base=make_base(), workspace=Workspace(tmp_path / "w"))


@pytest.mark.parametrize("trainer", [train_dpo, train_kto], ids=["dpo", "kto"])
def test_an_interrupted_run_goes_on_to_the_same_adapter(
    trainer: Callable[..., Any],
    pairs: Path,
    judged: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = make_base()
    data = pairs if trainer is train_dpo else judged
    monkeypatch.setattr(Checkpointer, "due", lambda *_, **__: True)
    asked = job(data, dropout=0.1)
    whole = trainer(asked, base=base, workspace=Workspace(tmp_path / "one"))

    class Stop(Observer):
        def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
            if step == 6:
                raise KeyboardInterrupt

    workspace = Workspace(tmp_path / "two")
    with pytest.raises(KeyboardInterrupt):
        trainer(asked, base=base, workspace=workspace, observer=Stop())
    (folder,) = workspace.runs.iterdir()
    again = resume_aligned(folder.name, base=base, workspace=workspace)
    assert again.record["sha256"] == whole.record["sha256"]
    assert again.record["run"] == folder.name


@pytest.mark.parametrize("trainer", [train_dpo, train_kto], ids=["dpo", "kto"])
def test_a_run_of_an_earlier_format_is_stored(
    trainer: Callable[..., Any],
    pairs: Path,
    judged: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interrupted when all was learned and nothing stored."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    base, workspace = make_base(), Workspace(tmp_path / "w")
    asked = job(pairs if trainer is train_dpo else judged)
    with monkeypatch.context() as stopped:
        stopped.setattr("onebase.align.preference_training.store_result", stop)
        with pytest.raises(KeyboardInterrupt):
            trainer(asked, base=base, workspace=workspace)
    (folder,) = workspace.runs.iterdir()
    as_format_1(folder)
    stored = resume_aligned(folder.name, base=base, workspace=workspace)
    assert onebase.AdapterStore(workspace).get("desk").name == stored.name


def test_a_run_whose_data_changed_does_not_go_on(
    pairs: Path, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base, workspace = make_base(), Workspace(tmp_path / "w")

    class Stop(Observer):
        def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_dpo(job(pairs), base=base, workspace=workspace, observer=Stop())
    (folder,) = workspace.runs.iterdir()
    pairs.write_text(pairs.read_text() + pairs.read_text().splitlines()[0] + "\n")
    with pytest.raises(UsageError, match="changed"):
        resume_aligned(folder.name, base=base, workspace=workspace)


@pytest.mark.parametrize("method", ["lora", "p-tuning-v2"])
def test_kto_tells_good_from_bad(
    method: str, judged: Path, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    rate = {"lora": 2e-3}.get(method, 1e-1)
    base, asked = make_base(), job(judged, method, learning_rate=rate)
    stored = train_kto(asked, base=base, workspace=Workspace(tmp_path / "w"))
    rows, reward = held_out_rewards(asked, "judged", stored, base)
    answers = [row.answers[0] for row in rows]
    rewards: dict[bool, list[float]] = {True: [], False: []}  # of good answers, and of bad ones
    elsewhere = []  # the rewards of each prompt with the next answer to another prompt
    for at, (row, one) in enumerate(zip(rows, answers, strict=True)):
        rewards[row.rating > 0].append(reward(one))
        other = next(item for item in answers[at:] + answers if item.prompt != one.prompt)
        elsewhere.append(reward(PromptAnswer(one.prompt, other.answer)))
    point = max(0, sum(elsewhere) / len(rows))
    # 1 - sigmoid(x) is 1 / (1 + exp(x)), x being r - z0 of a good answer and z0 - r of a bad one.
    losses = [1 / (1 + math.exp(found - point)) for found in rewards[True]]
    losses += [1 / (1 + math.exp(point - found)) for found in rewards[False]]
    assert (len(rewards[True]), len(rewards[False])) == (4, 5)
    assert min(rewards[True]) > max(rewards[False])
    metrics = stored.metrics
    assert metrics["base_eval_loss"] == 0.5  # the reference itself: r and z0 are 0
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / len(rows), abs=1e-5)
    for name, judged_so in (("reward_good", True), ("reward_bad", False)):
        mean = sum(rewards[judged_so]) / len(rewards[judged_so])
        assert metrics[name] == pytest.approx(mean, abs=1e-5)


def test_virtual_tokens_inside_the_prompt(
    pairs: Path, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    """P-tuning as in its paper, its virtual tokens at marked places in the template."""
    asked = AlignJob(
        "desk",
        pairs,
        "p-tuning",
        template="{v:2} Question: {input}{v:3}\nAnswer:",
        set={"epochs": 2, "batch_size": 4, "max_tokens": 128, "learning_rate": 1e-2},
    )
    base = make_base()
    stored = train_dpo(asked, base=base, workspace=Workspace(tmp_path / "w"))
    require_dpo_metrics(asked, stored, base, pairs=2)


@pytest.mark.parametrize("trainer", [train_dpo, train_kto], ids=["dpo", "kto"])
@pytest.mark.parametrize("wrong", [{"max_tokens": "many"}, {"beta": -1}, {"epochs": 0}])
def test_wrong_settings_are_named(
    trainer: Callable[..., Any],
    wrong: dict[str, Any],
    pairs: Path,
    judged: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    data = pairs if trainer is train_dpo else judged
    (key,) = wrong
    with pytest.raises(UsageError, match=key):
        trainer(job(data, **wrong), base=make_base(), workspace=Workspace(tmp_path / "w"))


def test_what_is_not_finite_changes_nothing(make_base: Callable[..., Base]) -> None:
    base = make_base()
    adapter = build_adapter(base, "lora", {"rank": 2}, init_text="x", seed=0)
    trainable = TrainableAdapter(base, adapter, onebase.Job("a", "", "lora"), max_norm=1.0)
    before = adapter.parts()
    for parameter in adapter.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    with pytest.raises(NotFinite):
        trainable.update(1.0)
    for name, tensor in adapter.parts().items():
        assert torch.equal(tensor, before[name])
