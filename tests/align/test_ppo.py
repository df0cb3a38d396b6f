"""PPO: what the mixed pass says of rollouts, every policy, its guards, going on."""

import errno
import itertools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.align.conftest import Notes, as_format_1

from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter
from onebase.adapters.scalar_head import ScalarHead
from onebase.adapters.workspace import Workspace
from onebase.align import rewards
from onebase.align.divergence import KLCoefficient
from onebase.align.experience import Models, gather_experience
from onebase.align.job import AlignJob
from onebase.align.ppo import ppo_step, train_ppo
from onebase.align.ppo_options import (
    PPOOptions,
    PPOSettings,
    RolloutOptions,
    ValueOptions,
    WatchOptions,
)
from onebase.align.ppo_state import PPOState
from onebase.align.resume import resume_aligned
from onebase.align.reward_model import train_reward
from onebase.align.rewards import FunctionReward, Prompt, RewardError
from onebase.align.rollout import roll_out
from onebase.data.example import Turn
from onebase.data.template import Template
from onebase.engine.rows import TokenRow, read_rows
from onebase.engine.sampling import Sampling
from onebase.errors import DataError, UsageError
from onebase.model.base import Base
from onebase.model.precision import choose
from onebase.runs.checkpointer import Checkpointer
from onebase.runs.observer import Observer
from onebase.runs.run import Run
from onebase.training.batch_sampler import BatchSampler
from onebase.training.job import Job
from onebase.training.trainable_adapter import TrainableAdapter

POLICIES = ["lora", "prompt-tuning", "p-tuning", "p-tuning-v2", "ia3", "lora+p-tuning"]
SMALL = {
    "steps": 3,
    "prompts": 3,
    "max_tokens": 5,
    "judge_every": 2,
    "epochs": 1,
    "value_rate": 1e-3,
}


def letters(prompt: str, answer: str, row: Mapping[str, Any]) -> float:
    return float(sum("a" <= letter <= "z" for letter in answer))


@pytest.fixture(autouse=True)
def _reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "load_function", lambda *_: letters)


@pytest.fixture
def prompts(write: Callable[..., Path]) -> Path:
    return write("prompts.jsonl", [{"prompt": f"where is {i}", "id": i} for i in range(8)])


def job(data: Path, method: str | None = "lora", **settings: Any) -> AlignJob:
    own: dict[str, Any] = {**SMALL, **settings}
    if method and "p" in method.replace("lora", ""):
        own = {"virtual_tokens": 4, **own}
    return AlignJob("desk", data, method, template="plain", set=own)


def adapter_of(
    base: Base,
    method: str,
    seed: int,
    *,
    head: bool = False,
    layers: str = "all",
    **more: Any,
) -> Any:
    settings: dict[str, Any] = {"virtual_tokens": 4} if "p" in method else {"rank": 2}
    settings |= more
    if method == "lora":
        settings["layers"] = layers
    adapter = build_adapter(base, method, settings, init_text="hello", seed=seed)
    if head:
        adapter.head = ScalarHead(base.shape.hidden)
    torch.manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return adapter


def models_of(
    base: Base, method: str = "prompt-tuning", layers: str = "all", **settings: Any
) -> Models:
    own = adapter_of(base, method, 1, **settings)
    policy = TrainableAdapter(base, own, Job("p", "", method), max_norm=1.0)
    valuing = adapter_of(base, "lora", 2, head=True, layers=layers)
    value = TrainableAdapter(base, valuing, Job("v", "", "lora"), max_norm=1.0)
    reference = adapter_of(base, "p-tuning-v2", 3).eval().requires_grad_(False).contribution()
    template = Template(base.tokenizer)
    return Models(base, template, policy, reference, value, FunctionReward("letters", letters))


def state_of(models: Models, prompts: list[Prompt], options: PPOOptions) -> PPOState:
    """Before a step on all of these prompts, without a KL penalty."""
    rollout = RolloutOptions(max_tokens=5, prompts=len(prompts))
    settings = PPOSettings(rollout, options, ValueOptions(), WatchOptions())
    batches = BatchSampler(prompts, len(prompts), seed=0)
    return PPOState("desk", 0, models, settings, batches, [], KLCoefficient(0.0, None))


def asked(base: Base, count: int = 4) -> list[Prompt]:
    texts = [f"where is {'x' * index}" for index in range(count)]
    return [
        Prompt((Turn("user", text),), tuple(base.tokenizer(text)["input_ids"]), {}, "f", index)
        for index, text in enumerate(texts)
    ]


def test_rollouts_are_the_policys_own_and_repeatable(make_base: Callable[..., Base]) -> None:
    base = make_base()
    policy = adapter_of(base, "lora", 1)
    sampling = Sampling(max_tokens=6, min_tokens=3, temperature=1.0, seed=5)
    first = roll_out(base, policy, Template(base.tokenizer), asked(base) * 4, sampling)
    again = roll_out(base, policy, Template(base.tokenizer), asked(base) * 4, sampling)
    assert [item.tokens for item in first] == [item.tokens for item in again]
    assert len({item.tokens.answer for item in first}) == 16  # each draws from 300 tokens, 6 times
    for item in first:
        assert 3 <= len(item.tokens.answer) - item.ended <= 6
        assert item.ended == (item.tokens.answer[-1] == base.tokenizer.eos_token_id)
        assert item.tokens.prompt == item.prompt.ids


@pytest.mark.parametrize("layers", ["all", "top:1"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_each_model_says_of_an_answer_what_it_says_alone(
    temperature: float, layers: str, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    models = models_of(base, layers=layers)
    options = RolloutOptions(max_tokens=5, temperature=temperature, cut_penalty=2.0, end_bonus=0.5)
    sampling = Sampling(max_tokens=5, temperature=temperature, seed=1)
    rollouts = roll_out(base, models.policy.adapter, models.template, asked(base), sampling)
    found = gather_experience(models, rollouts, options)
    assert models.value is not None
    assert found.values is not None
    assert found.trunk is not None
    assert (found.trunk.computed_tokens > 0) == (layers == "top:1")
    own = {"a": models.policy.adapter.contribution(), "r": models.reference}
    own["v"] = models.value.adapter.contribution()
    for index, item in enumerate(rollouts):
        size = len(item.tokens.answer)
        assert found.mask[index].sum() == size
        with torch.no_grad():
            for name, logprobs in (("a", found.logprobs), ("r", found.reference)):
                row = [item.tokens.logprob_row(name)]
                output, _ = read_rows(base, row, own, temperature=temperature, entropies=True)
                torch.testing.assert_close(
                    logprobs[index, :size], -output.losses, atol=1e-4, rtol=0
                )
                if name == "a":
                    seen = found.entropies[index, :size]
                    torch.testing.assert_close(seen, output.entropies, atol=1e-4, rtol=0)
            for at in range(size):  # the value before each token, read from the text so far
                ids = item.tokens.ids[: len(item.tokens.prompt) + at]
                alone = TokenRow("v", ids, (False,) * len(ids), (len(ids) - 1,))
                output, _ = read_rows(base, [alone], own)
                value = models.value.head(output.states)[0]
                torch.testing.assert_close(found.values[index, at], value, atol=1e-4, rtol=1e-4)
        assert float(found.raw[index]) == letters("", item.text, {})
        change = 0.5 if item.ended else -2.0
        assert float(found.scores[index] - found.raw[index]) == pytest.approx(change)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("prompt-tuning", {}),
        ("lora", {"dropout": 0.5}),
        ("lora", {"dropout": 0.5, "use_dora": True}),
        ("lora+p-tuning", {"dropout": 0.5, "encoder": "lstm", "hidden": 8}),
    ],
)
def test_at_the_first_update_the_ratio_is_1(
    method: str, settings: dict[str, Any], precision: str, make_base: Callable[..., Base]
) -> None:
    """Whatever is dropped when the policy learns from examples."""
    base = make_base()
    base.hold_in(choose(precision, device="cpu", stored=torch.float32), "cpu")
    models = models_of(base, method, **settings)
    models.policy.adapter.train()
    options = PPOOptions(epochs=1, minibatch=64, learning_rate=1e-3)
    record = ppo_step(state_of(models, asked(base), options))
    assert record["clip_fraction"] == 0
    if precision == "bf16":
        return
    assert record["moved"] == pytest.approx(0, abs=1e-6)
    # Whitened advantages have mean 0, and so has the surrogate at ratio 1.
    assert record["policy_loss"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("layers", ["all", "top:1"])
def test_packs_and_trunk_change_nothing(
    layers: str, make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One optimizer step from many small packs, above the trunk, is that from one large pack."""
    results = []
    for tokens in (16, 4096):
        monkeypatch.setattr("onebase.align.ppo.pack_tokens", lambda device, t=tokens: t)
        if tokens == 4096:  # nothing is kept
            monkeypatch.setattr("onebase.align.experience.Trunk", lambda base: None)
        base = make_base()
        models = models_of(base, "lora", layers)
        record = ppo_step(
            state_of(models, asked(base), PPOOptions(epochs=1, minibatch=64, learning_rate=1e-3))
        )
        parts = [models.policy.adapter.parts(), models.value.adapter.parts()]  # type: ignore[union-attr]
        results.append((record, parts))
    (one, first), (other, second) = results
    assert one == pytest.approx(other, abs=1e-5)
    for ours, theirs in zip(first, second, strict=True):
        for name, tensor in ours.items():
            # A step of 1e-3 moves every weight by about that.
            torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_every_policy_learns(
    policy: str,
    advantage: str,
    prompts: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    workspace = Workspace(tmp_path / "w")
    stored = train_ppo(
        job(prompts, policy, advantage=advantage, samples=2),
        "mine:reward",
        base=make_base(),
        workspace=workspace,
    )
    assert stored.record["aligned"] == ("grpo" if advantage == "group" else "ppo")
    folder = workspace.runs / stored.record["run"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    measured = {"time", "step", "reward", "kl", "entropy", "length", "ended", "distinct_2"}
    measured |= {"penalty", "policy_loss", "clip_fraction", "moved", "gradient_norm"}
    measured |= {"value_loss", "explained_variance"} if advantage == "gae" else set()
    assert set(steps[0]) == measured
    # The first answers are the reference's own, and one update learns from all of them.
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert (steps[0]["clip_fraction"], steps[0]["length"]) == (0, SMALL["max_tokens"])
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {line["step"] for line in samples} == {0, 2, 3}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    judged = [line for line in lines if "eval_reward" in line]
    assert judged[0]["eval_kl"] == pytest.approx(0, abs=1e-4)  # the policy is its reference
    best = max(judged, key=lambda line: line["eval_objective"])
    assert stored.metrics["best_step"] == best["step"]


def test_virtual_tokens_inside_the_prompt(
    prompts: Path, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    """The policy has its own at marked places, the value model reads the text without them."""
    asked_for = AlignJob(
        "desk", prompts, "p-tuning", template="{v:2} {input}{v:2}:", set={**SMALL, "hidden": 8}
    )
    stored = train_ppo(asked_for, "m:f", base=make_base(), workspace=Workspace(tmp_path / "w"))
    assert stored.metrics["steps"] == 3


def test_a_reward_model_scores_in_the_same_pass(
    prompts: Path, pairs: Path, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base, workspace = make_base(), Workspace(tmp_path / "w")
    quality = AlignJob("quality", pairs, "p-tuning-v2", set={"epochs": 1, "virtual_tokens": 4})
    train_reward(quality, base=base, workspace=workspace)
    stored = train_ppo(job(prompts), "quality", base=base, workspace=workspace)
    assert stored.record["reward"] == "quality@1"
    with pytest.raises(UsageError, match="not a reward model"):
        train_ppo(job(prompts), "desk", base=base, workspace=workspace)


@pytest.mark.parametrize("column", ["tools", "gold", "source"])
def test_a_reward_model_reads_no_other_column_and_that_is_told(
    column: str,
    pairs: Path,
    write: Callable[..., Path],
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    """A function is given the whole row, and there is nothing to tell."""
    base, workspace = make_base(), Workspace(tmp_path / "w")
    quality = AlignJob("quality", pairs, "lora", set={"epochs": 1, "rank": 2})
    train_reward(quality, base=base, workspace=workspace)
    prompts = write("more.jsonl", [{"prompt": f"q{at}", column: f"x{at}"} for at in range(6)])
    told = {}
    for reward in ("quality", "m:f"):
        observer = Notes()
        train_ppo(job(prompts), reward, base=base, workspace=workspace, observer=observer)
        told[reward] = [text for text in observer.notes if f"Not read: {column!r}" in text]
    assert (len(told["quality"]), len(told["m:f"])) == (1, 0)


def test_a_reward_that_fails_names_the_row_and_the_run_goes_on(
    prompts: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, calls = make_base(), 0
    monkeypatch.setattr(Checkpointer, "due", lambda *_, **__: True)
    whole = train_ppo(job(prompts), "mine:reward", base=base, workspace=Workspace(tmp_path / "1"))

    def failing(prompt: str, answer: str, row: Mapping[str, Any]) -> float:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise ZeroDivisionError("no id")
        return letters(prompt, answer, row)

    monkeypatch.setattr(rewards, "load_function", lambda *_: failing)
    workspace = Workspace(tmp_path / "2")
    with pytest.raises(RewardError, match=r"prompts\.jsonl:\d+: ZeroDivisionError: no id"):
        train_ppo(job(prompts), "mine:reward", base=base, workspace=workspace)
    monkeypatch.setattr(rewards, "load_function", lambda *_: letters)
    again = train_ppo(job(prompts), "mine:reward", base=base, workspace=workspace)
    assert again.record["sha256"] == whole.record["sha256"]
    assert len(list(workspace.runs.iterdir())) == 1


def test_a_reward_must_be_finite(
    prompts: Path, make_base: Callable[..., Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "load_function", lambda *_: lambda *_: float("nan"))
    with pytest.raises(RewardError, match="returned nan"):
        train_ppo(job(prompts), "m:f", base=make_base(), workspace=Workspace(tmp_path / "w"))


@pytest.mark.parametrize("earlier", [False, True], ids=["", "of an earlier format"])
def test_an_interrupted_run_goes_on_to_the_same_policy(
    earlier: bool,
    prompts: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = make_base()
    monkeypatch.setattr(Checkpointer, "due", lambda *_, **__: True)
    asked_for = job(prompts, kl_target=2.0)
    whole = train_ppo(asked_for, "m:f", base=base, workspace=Workspace(tmp_path / "1"))

    class Stop(Observer):
        def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
            if step == 2 and "reward" in record:
                raise KeyboardInterrupt

    workspace = Workspace(tmp_path / "2")
    with pytest.raises(KeyboardInterrupt):
        train_ppo(asked_for, "m:f", base=base, workspace=workspace, observer=Stop())
    (folder,) = workspace.runs.iterdir()
    if earlier:  # which did not know how long samples.jsonl was
        as_format_1(folder)
    else:
        with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"step": 1, "answer": "written after the checkpoint"}\n')
    again = resume_aligned(folder.name, base=base, workspace=workspace)
    assert again.record["sha256"] == whole.record["sha256"]
    assert again.metrics["reward"] == whole.metrics["reward"]
    text = (folder / "metrics.jsonl").read_text()
    judged = [line["step"] for line in map(json.loads, text.splitlines()) if "eval_reward" in line]
    assert judged == [0, 2, 3]  # each once
    (undisturbed,) = (tmp_path / "1" / "runs").iterdir()
    samples = [path / "samples.jsonl" for path in (folder, undisturbed)]
    assert samples[0].read_text() == samples[1].read_text()


@pytest.mark.parametrize("full", ["metrics.jsonl", "samples.jsonl", "curves.png"])
def test_a_full_disk_costs_no_more_than_what_it_refuses(
    full: str,
    prompts: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The results are none of what was written in between."""
    small = {"steps": 1, "prompts": 2, "max_tokens": 2, "judge_answers": 2}
    results = []
    for place in ("room", "none"):
        if place == "none":
            refuse(full, monkeypatch)
        workspace = Workspace(tmp_path / place)
        stored = train_ppo(job(prompts, **small), "m:f", base=make_base(), workspace=workspace)
        metrics = {key: value for key, value in stored.metrics.items() if key != "seconds"}
        results.append((metrics, stored.record["sha256"]))
    assert results[0] == results[1]


def refuse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the disk be full for one file of a run."""

    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if name == "metrics.jsonl":
        monkeypatch.setattr(Run, "log", no_room)
    elif name == "curves.png":
        monkeypatch.setattr("onebase.align.ppo.draw_curves", no_room)
    else:
        opened = Path.open

        def open_(path: Path, *arguments: Any, **settings: Any) -> Any:
            if path.name == name:
                no_room()
            return opened(path, *arguments, **settings)

        monkeypatch.setattr(Path, "open", open_)


@pytest.mark.parametrize(
    ("settings", "reward"),
    [
        ({"advantage": "group", "samples": 2}, lambda prompt, answer, row: 1.0),
        ({"advantage": "group", "samples": 2}, lambda prompt, answer, row: row["id"]),
        ({}, lambda prompt, answer, row: 1.0),
    ],
)
def test_equal_rewards_are_told_and_not_promoted(
    settings: dict[str, Any],
    reward: Any,
    prompts: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every group, where answers are compared in groups."""
    monkeypatch.setattr(rewards, "load_function", lambda *_: reward)
    observer, workspace = Notes(), Workspace(tmp_path / "w")
    asked_for = job(prompts, judge_every=1, **{"max_tokens": 2, "judge_answers": 2, **settings})
    stored = train_ppo(asked_for, "m:f", base=make_base(), workspace=workspace, observer=observer)
    assert not stored.current
    assert stored.metrics["learned"] is False
    if "samples" in settings:  # nothing moves the weights
        kept = load_adapter(stored.path, make_base()).contribution().deltas
        assert len(kept) == 21  # seven projections in each of three layers
        assert all(not delta.b.any() for delta in kept.values())
    assert any("adapters promote desk@1" in text for text in observer.notes)


@pytest.mark.parametrize("seed", [1 << 42, 1 << 43, (1 << 63) - 1])
def test_a_large_seed_is_a_seed(
    seed: int, prompts: Path, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    small = {"steps": 1, "prompts": 2, "max_tokens": 2, "judge_answers": 2}
    asked_for = replace(job(prompts, **small), seed=seed)
    stored = train_ppo(asked_for, "m:f", base=make_base(), workspace=Workspace(tmp_path / "w"))
    assert stored.metrics["steps"] == 1


def test_dropout_that_is_not_used_is_told(
    prompts: Path, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    small = {"steps": 1, "prompts": 2, "max_tokens": 2, "judge_answers": 2}
    for dropout in (0.0, 0.5):
        observer = Notes()
        stored = train_ppo(
            job(prompts, dropout=dropout, **small),
            "m:f",
            base=make_base(),
            workspace=Workspace(tmp_path / "w"),
            observer=observer,
        )
        assert stored.record["options"]["dropout"] == dropout
        told = [text for text in observer.notes if "trains without dropout" in text]
        assert len(told) == bool(dropout)


@pytest.mark.parametrize(
    ("settings", "reason", "over"),
    [
        (
            {"stop_kl": 1e-3, "learning_rate": 1e-2},
            "above stop_kl=0.001",
            lambda line, first: line["kl"] > 1e-3,
        ),
        (
            {"stop_entropy": 0.999, "learning_rate": 3e-2},
            "almost identical",
            lambda line, first: line["entropy"] < 0.999 * first["entropy"],
        ),
    ],
)
def test_it_stops_where_the_policy_strays_or_collapses(
    settings: dict[str, Any],
    reason: str,
    over: Callable[..., bool],
    prompts: Path,
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    workspace = Workspace(tmp_path / "w")
    stored = train_ppo(
        job(prompts, steps=12, kl=0.0, **settings), "m:f", base=make_base(), workspace=workspace
    )
    assert reason in stored.metrics["stopped"]
    text = (workspace.runs / stored.record["run"] / "metrics.jsonl").read_text()
    steps = [line for line in map(json.loads, text.splitlines()) if "reward" in line]
    assert [over(line, steps[0]) for line in steps] == [False] * (len(steps) - 1) + [True]
    assert stored.metrics["steps"] == len(steps) < 12


def test_a_policy_beyond_the_bound_is_not_the_best(
    prompts: Path, make_base: Callable[..., Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However well it does: here every answer is worth more than the one before."""
    worth = itertools.count()
    monkeypatch.setattr(rewards, "load_function", lambda *_: lambda *_: float(next(worth)))
    stored = train_ppo(
        job(prompts, steps=12, kl=0.0, stop_kl=1e-3, learning_rate=1e-2),
        "m:f",
        base=make_base(),
        workspace=Workspace(tmp_path / "w"),
    )
    assert "stop_kl" in stored.metrics["stopped"]
    # 32 answers are judged at the steps 0, 2 and so on and at the end; every step draws three.
    steps = stored.metrics["steps"]
    before = 32 * ((steps + 1) // 2) + 3 * steps
    assert stored.metrics["reward"] == sum(range(32)) / 32
    assert stored.metrics["last_reward"] == sum(range(before, before + 32)) / 32
    assert stored.metrics["best_step"] == 0
    assert stored.metrics["kl"] == pytest.approx(0, abs=1e-5)


def test_what_is_asked_for_wrongly_is_refused(
    prompts: Path, write: Callable[..., Path], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base, workspace = make_base(), Workspace(tmp_path / "w")
    wrong: list[tuple[AlignJob, type[Exception], str]] = [
        (job(prompts, advantage="group"), UsageError, "samples=1"),
        (job(prompts, stepps=3), UsageError, "stepps"),
        (job(prompts, kl=-1), UsageError, "kl=-1"),
        (job(prompts, max_tokens=10**6), DataError, "context"),
        (job(write("one.jsonl", [{"prompt": "a"}])), DataError, "1 different prompts"),
        (job(write("bad.jsonl", [{"prompt": 5}, {"prompt": "a"}])), DataError, "bad rows: 1"),
        (job(write("none.jsonl", [{"x": "a"}])), DataError, "none holds prompts"),
        (job(prompts, None), UsageError, "'desk' has no adapter"),
    ]
    for asked_for, kind, text in wrong:
        with pytest.raises(kind, match=text):
            train_ppo(asked_for, "m:f", base=base, workspace=workspace)
    with pytest.raises(UsageError, match="quality"):
        train_ppo(job(prompts), "quality", base=base, workspace=workspace)
    assert not workspace.runs.exists()
