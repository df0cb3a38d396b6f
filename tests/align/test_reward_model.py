"""Reward models: PEFT's own sequence classifier scores the same, and they learn what they should."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.align.conftest import as_format_1
from transformers import LlamaForSequenceClassification

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.adapters.scalar_head import ScalarHead
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.align import reward_model
from onebase.align.job import AlignJob
from onebase.align.reward_model import train_reward
from onebase.align.scoring import score_answers
from onebase.engine.engine import Engine
from onebase.engine.rows import TokenRow, read_rows
from onebase.errors import DataError, UsageError
from onebase.model.base import Base
from onebase.runs.checkpointer import Checkpointer
from onebase.runs.observer import Observer

METHODS = {
    "lora": ("lora", {"rank": 4}),
    "ia3": ("ia3", {}),
    "prompt-tuning": ("prompt-tuning", {"virtual_tokens": 5}),
    "p-tuning": ("p-tuning", {"virtual_tokens": 5, "hidden": 8}),
    "p-tuning-v2": ("p-tuning-v2", {"virtual_tokens": 5}),
    "together": ("lora+p-tuning-v2", {"rank": 2, "virtual_tokens": 4}),
}


def headed(base: Base, name: str) -> Adapter:
    method, settings = METHODS[name]
    adapter = build_adapter(base, method, settings, init_text="hello, you", seed=0)
    adapter.head = ScalarHead(base.shape.hidden)
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return adapter.eval()


def score(base: Base, adapter: Adapter, ids: tuple[int, ...]) -> torch.Tensor:
    row = TokenRow("a", ids, (False,) * len(ids), (len(ids) - 1,))
    with torch.no_grad():
        output, _ = read_rows(base, [row], {"a": adapter.contribution()})
        assert adapter.head is not None
        return adapter.head(output.states)[0]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "together"])
def test_pefts_classifier_scores_the_same(
    name: str,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
    tmp_path: Path,
) -> None:
    base, ids = make_base(), tuple(range(20, 33))
    adapter = headed(base, name)
    save_adapter(adapter, tmp_path, base)
    plain = plain_model("llama")
    plain.config.num_labels = 1
    theirs = LlamaForSequenceClassification(plain.config)
    theirs.model.load_state_dict(plain.model.state_dict())
    model = peft.PeftModel.from_pretrained(theirs.eval(), str(tmp_path)).eval()
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
        ).logits[0, 0]
    ours = score(base, adapter, ids)
    assert abs(float(ours)) > 0.05
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_head_comes_back(name: str, make_base: Callable[..., Base], tmp_path: Path) -> None:
    base, ids = make_base(), tuple(range(20, 33))
    adapter = headed(base, name)
    save_adapter(adapter, tmp_path, base)
    again = load_adapter(tmp_path, base).eval()
    torch.testing.assert_close(score(base, again, ids), score(base, adapter, ids))


def job(data: Path, method: str = "lora", **settings: Any) -> AlignJob:
    return AlignJob(
        "quality",
        data,
        method,
        template="{input}",
        set={"epochs": 6, "batch_size": 4, "max_tokens": 64, **settings},
    )


def require_metrics(
    metrics: dict[str, Any], scores: Sequence[float], gaps: Sequence[float]
) -> None:
    """That a record is right about the held-out scores and, for every pair of them, by how much the
    better one is higher. Calibration: the surer of sigmoid(gap) and 1 - sigmoid(gap), in tenths.
    """
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    assert metrics["score_mean"] == pytest.approx(mean, abs=1e-5)
    assert metrics["score_deviation"] == pytest.approx(deviation, abs=1e-5)
    right = [gap > 0 for gap in gaps]
    assert metrics["pairs"] == len(gaps)
    assert metrics["pair_accuracy"] == pytest.approx(sum(right) / len(gaps))
    sure = [1 / (1 + math.exp(-abs(gap))) for gap in gaps]
    error = 0.0
    for tenth in range(10):
        chosen = [at for at, one in enumerate(sure) if int((one - 0.5) * 20) == tenth]
        error += abs(sum(sure[at] for at in chosen) - sum(right[at] for at in chosen))
    assert metrics["calibration_error"] == pytest.approx(error / len(gaps), abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "p-tuning-v2", "prompt-tuning"])
def test_pairs_are_learned(
    method: str,
    pairs: Path,
    write: Callable[..., Path],
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    base, workspace = make_base(), Workspace(tmp_path / "w")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    # One pair is the other way round, so that an accuracy of 1 is wrong.
    turned = {"prompt": rows[0]["prompt"], "chosen": "lamp", "rejected": "on its way, lamp 7"}
    held_out, pairs = [*rows[18:], turned], write("learned.jsonl", rows[:18])
    asked = replace(job(pairs, method, head_rate=1e-2), held_out=write("held.jsonl", held_out))
    stored = train_reward(asked, base=base, workspace=workspace)
    metrics = stored.metrics
    texts = [(row["prompt"], row[key]) for row in held_out for key in ("chosen", "rejected")]
    standard = score_answers("quality", texts, base=base, workspace=workspace)
    scores = [metrics["score_mean"] + metrics["score_deviation"] * score for score in standard]
    gaps = [better - worse for better, worse in zip(scores[::2], scores[1::2], strict=True)]
    require_metrics(metrics, scores, gaps)
    losses = [math.log1p(math.exp(-gap)) for gap in gaps]
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / len(gaps), abs=1e-5)
    assert [gap > 0 for gap in gaps] == [True] * 6 + [False]
    with pytest.raises(UsageError, match="reward model"):
        Engine(base, [AdapterStore(workspace).get("quality")])


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_an_evaluation_scores_the_held_out_rows_once(
    epochs: int,
    pairs: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored = reward_model._scores
    rows: list[int] = []

    def counted(training: Any, group: Any, tokens: int) -> Any:
        if not torch.is_grad_enabled():
            rows.append(len(group))
        return scored(training, group, tokens)

    monkeypatch.setattr(reward_model, "_scores", counted)
    asked = job(pairs, rank=2, epochs=epochs, batch_size=12)
    stored = train_reward(asked, base=make_base(), workspace=Workspace(tmp_path / "w"))
    assert len(rows) == epochs
    assert stored.metrics["pairs"] == rows[0]


def test_ratings_are_learned(
    write: Callable[..., Path], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    rows = [
        {"text": "parcel " * (1 + i % 5) + str(i), "rating": float(i % 5) - 2} for i in range(40)
    ]
    held_out = [{"text": "parcel " * n + str(n + 40), "rating": n - 3} for n in range(1, 6)]
    base, workspace = make_base(), Workspace(tmp_path / "w")
    asked = job(write("ratings.jsonl", rows), head_rate=1e-2)
    asked = replace(asked, held_out=write("held.jsonl", held_out))
    stored = train_reward(asked, base=base, workspace=workspace)
    metrics = stored.metrics
    assert metrics["rating_mean"] == pytest.approx(0)  # of -2, -1, 0, 1, 2, eight of each
    assert metrics["rating_deviation"] == pytest.approx(math.sqrt(2))
    texts = [("", row["text"]) for row in held_out]
    standard = score_answers("quality", texts, base=base, workspace=workspace)
    scores = [metrics["score_mean"] + metrics["score_deviation"] * score for score in standard]
    # The ten pairs of ratings that differ by the margin, 1, or more.
    gaps = [scores[better] - scores[worse] for better in range(5) for worse in range(better)]
    require_metrics(metrics, scores, gaps)
    errors = [
        score - row["rating"] / math.sqrt(2) for score, row in zip(scores, held_out, strict=True)
    ]
    assert metrics["eval_loss"] == pytest.approx(sum(e * e for e in errors) / 5, abs=1e-5)
    assert metrics["eval_loss"] < 0.5  # 1 for a model that always says the mean
    assert stored.record["template"]["kind"] == "{input}"


def test_what_can_not_be_learned_is_refused(
    write: Callable[..., Path], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base, workspace = make_base(), Workspace(tmp_path / "w")
    same = write("same.jsonl", [{"text": f"t{i}", "rating": 1} for i in range(6)])
    with pytest.raises(UsageError, match="Every rating"):
        train_reward(job(same), base=base, workspace=workspace)
    answers = write("answers.jsonl", [{"input": "q", "output": "a"}])
    with pytest.raises(DataError, match="not pairs of answers or rated answers"):
        train_reward(job(answers), base=base, workspace=workspace)
    with pytest.raises(UsageError, match="head_rat"):
        train_reward(job(same, head_rat=1), base=base, workspace=workspace)
    assert not workspace.adapters.exists() or not list(workspace.adapters.iterdir())
    assert not workspace.runs.exists()


@pytest.mark.parametrize("earlier_format", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_model(
    earlier_format: bool,
    pairs: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = make_base()
    monkeypatch.setattr(Checkpointer, "due", lambda *_, **__: True)
    whole = train_reward(job(pairs), base=base, workspace=Workspace(tmp_path / "one"))

    class Stop(Observer):
        def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
            if step == 7:
                raise KeyboardInterrupt

    workspace = Workspace(tmp_path / "two")
    with pytest.raises(KeyboardInterrupt):
        train_reward(job(pairs), base=base, workspace=workspace, observer=Stop())
    if earlier_format:
        (folder,) = workspace.runs.iterdir()
        as_format_1(folder, reward_model=True)
    again = train_reward(job(pairs), base=base, workspace=workspace)
    assert again.record["sha256"] == whole.record["sha256"]
    assert again.metrics["eval_loss"] == whole.metrics["eval_loss"]
    assert again.metrics["pair_accuracy"] == whole.metrics["pair_accuracy"]
    assert len(list(workspace.runs.iterdir())) == 1
    lines = [
        json.loads(line)
        for line in (workspace.runs / again.record["run"] / "metrics.jsonl")
        .read_text()
        .splitlines()
    ]
    assert [line["step"] for line in lines if "loss" in line] == list(
        range(1, whole.metrics["steps"] + 1)
    )
