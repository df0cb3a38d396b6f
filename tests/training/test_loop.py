"""Training together against training alone, and against a plain padded loop in PEFT."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.nn.functional import cross_entropy

from onebase.engine.trunk import Trunk
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.training import loop
from onebase.training.job import Job
from onebase.training.job_state import JobState
from onebase.training.learning_rate import learning_rate_factor
from onebase.training.loop import evaluate_together, step_together, train_together
from onebase.training.options import TrainOptions

WORDS = ["parcel", "order", "lamp", "refund", "today", "hello", "way", "shop", "late", "new"]


class Losses(Observer):
    """A watcher that keeps each job's losses."""

    def __init__(self) -> None:
        self.by_task: dict[str, list[float]] = {}
        self.judged_by_task: dict[str, list[float]] = {}

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        self.by_task.setdefault(task, []).append(record["loss"])

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        self.judged_by_task.setdefault(task, []).append(record["eval_loss"])


def write_rows(folder: Path, name: str, count: int, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)

    def words(length: int) -> str:
        chosen = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        return " ".join(WORDS[index] for index in chosen)

    file = folder / f"{name}.jsonl"
    rows = [{"input": f"{words(2 + i % 5)} {i}", "output": words(2 + i % 3)} for i in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def four_jobs(folder: Path) -> list[Job]:
    common = {"epochs": 40, "batch_size": 4, "virtual_tokens": 5, "warmup": 3}
    lora = {"epochs": 40, "batch_size": 3, "rank": 4, "learning_rate": 1e-3, "warmup": 2}
    return [
        Job("a", write_rows(folder, "a", 20, 1), "lora", "Say it.", set=lora),
        Job("b", write_rows(folder, "b", 14, 2), "prompt-tuning", "Do it.", set=common),
        Job("c", write_rows(folder, "c", 9, 3), "p-tuning", set={**common, "accumulation": 2}),
        Job("d", write_rows(folder, "d", 17, 4), "p-tuning-v2", "Now.", set=common, seed=5),
    ]


def run_steps(base: Base, jobs: list[Job], steps: int) -> tuple[Losses, list[JobState]]:
    observer = Losses()
    job_states = [JobState(job, base) for job in jobs]
    for _ in range(steps):
        step_together(base, job_states, observer)
    return observer, job_states


def held_out_loss(model: Any, job_state: JobState) -> float:
    """The mean loss a label of a job's held-out rows, by a plain model and one row a pass."""
    total, labels = 0.0, 0
    for row in job_state.data.held_out:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.ids])).logits[0]
        learned = [at for at, is_label in enumerate(row.loss_mask) if is_label]
        ahead = logits[[at - 1 for at in learned]]
        wanted = torch.tensor([row.ids[at] for at in learned])
        total += float(cross_entropy(ahead, wanted, reduction="sum"))
        labels += len(learned)
    return total / labels


def test_jobs_trained_together_have_the_losses_of_jobs_trained_alone(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    jobs = four_jobs(tmp_path)
    together, _ = run_steps(make_base(), jobs, 20)
    for job in jobs:
        alone, _ = run_steps(make_base(), [job], 20)
        assert together.by_task[job.task] == pytest.approx(alone.by_task[job.task], abs=1e-5)
        assert together.by_task[job.task][-1] < together.by_task[job.task][0]


def test_accumulation_equals_the_larger_batch(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    file = write_rows(tmp_path, "a", 24)
    big = {"rank": 4, "batch_size": 6}
    small = {"rank": 4, "batch_size": 2, "accumulation": 3}
    one, _ = run_steps(make_base(), [Job("a", file, "lora", set=big)], 6)
    other, _ = run_steps(make_base(), [Job("a", file, "lora", set=small)], 6)
    assert one.by_task["a"] == pytest.approx(other.by_task["a"], abs=1e-6)


def test_lora_equals_a_plain_padded_loop_in_peft(
    tmp_path: Path, make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    settings = {"rank": 4, "batch_size": 4, "epochs": 3, "warmup": 2, "learning_rate": 3e-3}
    job = Job("a", write_rows(tmp_path, "a", 16), "lora", "Say it.", set=settings)
    base = make_base()
    ours, _ = run_steps(base, [job], 6)

    twin_learner = JobState(job, make_base())
    lora = twin_learner.adapter.lora
    assert lora is not None
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=16.0,
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in lora.names}),
    )
    model = peft.get_peft_model(plain_model("llama"), config)
    for index, name in enumerate(lora.names):
        module = model.get_submodule(f"base_model.model.{name}")
        module.lora_A["default"].weight.data.copy_(lora.a[index])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.0)
    total = twin_learner.total_steps
    theirs = []
    for step in range(6):
        rows = [row for part in twin_learner.next_batch() for row in part]
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for at, row in enumerate(rows):
            tokens = torch.tensor(row.ids)
            ids[at, : len(tokens)] = tokens
            labels[at, : len(tokens)] = torch.where(torch.tensor(row.loss_mask), tokens, -100)
            mask[at, : len(tokens)] = 1
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = (step + 1) / 2 if step < 2 else 1 - (step - 2) / (total - 2)
        optimizer.param_groups[0]["lr"] = 3e-3 * rate
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    assert ours.by_task["a"] == pytest.approx(theirs, abs=1e-5)


def test_early_stopping_stops_that_job_alone_and_keeps_its_best(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    wild = {"epochs": 12, "patience": 2, "learning_rate": 0.1, "rank": 4}
    calm = {"epochs": 12, "rank": 4, "learning_rate": 1e-3}
    base, observer = make_base(), Losses()
    job_states = [
        JobState(Job("wild", write_rows(tmp_path, "w", 20, 1), "lora", set=wild), base),
        JobState(Job("calm", write_rows(tmp_path, "c", 20, 2), "lora", set=calm), base),
    ]
    train_together(job_states, observer)
    assert job_states[0].out_of_patience
    assert not any(job_state.diverged for job_state in job_states)
    assert job_states[0].step - job_states[0].best_step == 2 * job_states[0].steps_an_epoch
    assert job_states[0].step < job_states[0].total_steps
    assert job_states[1].step == job_states[1].total_steps
    for job_state in job_states:
        again = Losses()
        evaluate_together(base, [job_state], again)
        best = min(observer.judged_by_task[job_state.job.task])
        assert again.judged_by_task[job_state.job.task][0] == pytest.approx(best, abs=1e-6)


def test_nothing_held_out_keeps_the_last_state(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    settings = {"held_out": 0, "epochs": 2, "rank": 2}
    job = Job("a", write_rows(tmp_path, "a", 8), "lora", set=settings)
    base = make_base()
    job_state = JobState(job, base)
    train_together([job_state], Losses())
    assert job_state.best_step == job_state.step == 2


@pytest.mark.parametrize(
    ("kind", "step", "expected"),
    [
        ("linear", 0, 0.25),
        ("linear", 3, 1.0),
        ("linear", 4, 1.0),
        ("linear", 8, 0.5),
        ("linear", 12, 0.0),
        ("cosine", 8, 0.5),
        ("cosine", 6, 0.8535533905932737),
        ("constant", 11, 1.0),
    ],
)
def test_schedule(kind: str, step: int, expected: float) -> None:
    options = TrainOptions.model_validate({"warmup": 4, "schedule": kind})
    assert learning_rate_factor(options, step, 12) == pytest.approx(expected)


def test_whole_trainings_together_are_those_alone(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    """Jobs of different lengths, through evaluations: losses, best steps and weights."""
    jobs = [
        replace(job, set={**job.set, "epochs": 2 + 2 * at})
        for at, job in enumerate(four_jobs(tmp_path))
    ]
    base, together = make_base(), Losses()
    job_states = [JobState(job, base) for job in jobs]
    assert len({job_state.total_steps for job_state in job_states}) == 4
    train_together(job_states, together)
    for job, job_state in zip(jobs, job_states, strict=True):
        alone, twin = Losses(), JobState(job, base)
        train_together([twin], alone)
        task = job.task
        assert job_state.step == len(alone.by_task[task]) == job_state.total_steps
        assert together.by_task[task] == pytest.approx(alone.by_task[task], abs=1e-5)
        assert together.judged_by_task[task] == pytest.approx(alone.judged_by_task[task], abs=1e-5)
        assert job_state.best_step == twin.best_step
        for key, value in twin.adapter.parts().items():
            # Processors with AVX-512 sum in another order: up to 3e-5 over these trainings.
            torch.testing.assert_close(job_state.adapter.parts()[key], value, atol=5e-5, rtol=0)


@pytest.mark.parametrize("method", ["lora", "p-tuning-v2"])
def test_a_job_that_diverges_ends_alone(
    method: str, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    wild = Job("wild", write_rows(tmp_path, "w", 12, 1), method, set={"learning_rate": 1e30})
    calm = Job("calm", write_rows(tmp_path, "c", 12, 2), "lora", set={"warmup": 0})
    base, together, alone = make_base(), Losses(), Losses()
    job_states = [JobState(job, base) for job in (wild, calm)]  # the wild one comes first in a pack
    train_together(job_states, together)
    train_together([JobState(calm, base)], alone)
    assert job_states[0].diverged
    assert not job_states[1].diverged
    assert together.by_task["calm"] == pytest.approx(alone.by_task["calm"], abs=1e-5)
    assert together.judged_by_task["calm"] == pytest.approx(alone.judged_by_task["calm"], abs=1e-5)
    assert all(bool(part.isfinite().all()) for part in job_states[0].adapter.parts().values())


def test_rows_are_taken_once_an_epoch_in_an_order_of_the_seed(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    file, base = write_rows(tmp_path, "a", 11), make_base()
    settings = {"held_out": 0, "batch_size": 2, "accumulation": 2, "rank": 1}

    def epochs(seed: int) -> list[list[tuple[int, ...]]]:
        job_state = JobState(Job("a", file, seed=seed, set=settings), base)
        assert job_state.steps_an_epoch == 3
        turns = [[job_state.next_batch() for _ in range(3)] for _ in range(2)]
        assert [[len(part) for part in parts] for parts in turns[0]] == [[2, 2], [2, 2], [2, 1]]
        return [[row.ids for parts in turn for part in parts for row in part] for turn in turns]

    first, second = epochs(0)
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 11
    assert epochs(0) == [first, second]
    assert epochs(1)[0] != first


def top_jobs(folder: Path, **settings: Any) -> list[Job]:
    """Two LoRAs on the top layers with the same data, one on all of them."""
    file = write_rows(folder, "top", 18, 6)
    common = {"epochs": 3, "batch_size": 4, "rank": 4, "held_out": 0.2, **settings}
    return [
        Job("top", file, "lora", set={**common, "layers": "top:1"}),
        Job("too", file, "lora", set={**common, "layers": "top:1", "learning_rate": 1e-3}),
        Job("two", file, "ia3", set={**settings, "epochs": 2, "layers": "top:2"}),
        Job("all", file, "lora", set=common),
    ]


def test_the_trunk_changes_no_losses_and_is_computed_once(
    tmp_path: Path, make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Trunk] = []

    class Kept(Trunk):
        def __init__(self, base: Base, **options: Any) -> None:
            super().__init__(base, **options)
            made.append(self)

    monkeypatch.setattr(loop, "Trunk", Kept)
    watchers = {}
    for trunk in ("none", "fp32", "fp16"):
        base = make_base()
        job_states = [JobState(job, base) for job in top_jobs(tmp_path, trunk=trunk)]
        watchers[trunk] = Losses()
        train_together(job_states, watchers[trunk])
    exact, rounded = made
    before = loop.shared_trunk(base, job_states)
    assert before is not None
    assert exact.computed_tokens == rounded.computed_tokens == before.computed_tokens
    # Each text is kept at two depths. `top` and `too` take the same rows in the same steps, and so
    # ask for every text 3 times together; `two` asks for it 2 times.
    texts = [row.ids for row in (*job_states[0].data.train, *job_states[0].data.held_out)]
    assert exact.reused_tokens == rounded.reused_tokens == (3 + 2) * sum(map(len, texts))
    for task, losses in watchers["none"].by_task.items():
        assert watchers["fp32"].by_task[task] == pytest.approx(losses, abs=1e-5)
        assert watchers["fp16"].by_task[task] == pytest.approx(losses, abs=5e-4)
        judged = watchers["none"].judged_by_task[task]
        assert watchers["fp32"].judged_by_task[task] == pytest.approx(judged, abs=1e-5)
    assert watchers["fp16"].by_task["top"] != watchers["fp32"].by_task["top"]


def test_jobs_without_a_trunk_have_none(tmp_path: Path, make_base: Callable[..., Base]) -> None:
    base = make_base()
    job_states = [JobState(job, base) for job in four_jobs(tmp_path)]
    assert [job_state.depth for job_state in job_states] == [0, 0, 0, 0]
    assert loop.shared_trunk(base, job_states) is None
    assert [JobState(job, base).depth for job in top_jobs(tmp_path)] == [2, 2, 1, 0]
    assert [JobState(job, base).depth for job in top_jobs(tmp_path, trunk="none")] == [0] * 4
