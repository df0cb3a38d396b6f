"""Reward models: PEFT's own sequence classifier scores the same, and they learn what they should."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaForSequenceClassification

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.adapters.scalar_head import ScalarHead
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.align import reward_model, run
from onebase.align.reward_model import train_reward
from onebase.align.scoring import score_answers
from onebase.align.task import AlignJob
from onebase.engine.engine import Engine
from onebase.engine.rows import TokenRow, read_rows
from onebase.errors import DataError, UsageError
from onebase.model.base import Base

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


@pytest.mark.parametrize("method", ["lora", "p-tuning-v2", "prompt-tuning"])
def test_pairs_are_learned(
    method: str, pairs: Path, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base, workspace = make_base(), Workspace(tmp_path / "w")
    stored = train_reward(
        job(pairs, method, head_rate=1e-2, held_out=0.25), base=base, workspace=workspace
    )
    metrics = stored.metrics
    assert metrics["pair_accuracy"] >= 0.8
    assert metrics["pairs"] >= 4
    assert 0 <= metrics["calibration_error"] <= 1
    longer, shorter = score_answers(
        "quality",
        [("where is the lamp 3", "on its way, order 77"), ("where is the lamp 3", "lamp")],
        base=base,
        workspace=workspace,
    )
    assert longer > shorter
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
    scored = reward_model._scored
    rows: list[int] = []

    def counted(base: Base, trainee: Any, own: Any, tokens: int) -> Any:
        if not torch.is_grad_enabled():
            rows.append(len(own))
        return scored(base, trainee, own, tokens)

    monkeypatch.setattr(reward_model, "_scored", counted)
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
    stored = train_reward(
        job(write("ratings.jsonl", rows), head_rate=1e-2),
        base=make_base(),
        workspace=Workspace(tmp_path / "w"),
    )
    assert stored.metrics["pair_accuracy"] >= 0.8
    assert stored.metrics["rating_mean"] == pytest.approx(0, abs=0.3)
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


def test_an_interrupted_run_goes_on_to_the_same_model(
    pairs: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = make_base()
    monkeypatch.setattr(run, "SAVE_SECONDS", 0.0)
    whole = train_reward(job(pairs), base=base, workspace=Workspace(tmp_path / "one"))

    class Stop:
        def began(self, title: str, step: int, total: int) -> None:
            pass

        def measured(self, step: int, record: dict[str, Any]) -> None:
            if step == 7:
                raise KeyboardInterrupt

        def noted(self, text: str) -> None:
            pass

    workspace = Workspace(tmp_path / "two")
    with pytest.raises(KeyboardInterrupt):
        train_reward(job(pairs), base=base, workspace=workspace, watcher=Stop())
    again = train_reward(job(pairs), base=base, workspace=workspace)
    assert again.record["sha256"] == whole.record["sha256"]
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
