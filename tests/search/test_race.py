"""Races: who wins, what it costs, and what is left when one ends early."""

import errno
import json
import signal
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_loop import Losses, held_out_loss, write_rows

import onebase
from onebase.data.template import Template
from onebase.engine import trunk as trunk_module
from onebase.errors import DataError, UsageError
from onebase.model.base import Base
from onebase.runs.interruption import Interrupted
from onebase.runs.observer import JobStart, Observer
from onebase.runs.run import RunStore
from onebase.search import budget as budget_module
from onebase.search import candidate_training as training_module
from onebase.search import race as race_module
from onebase.search.budget import Budget
from onebase.search.candidate import candidate_job
from onebase.search.leaderboard import Stop
from onebase.search.race import RaceResult, race
from onebase.search.space import Configuration, Space, default_space
from onebase.training import loop as loop_module
from onebase.training.job_state import JobState
from onebase.training.loop import train_together
from onebase.training.task_data import task_data
from onebase.training.train import resume


def space_of(*configurations: tuple[str, dict[str, Any]]) -> Space:
    return Space(
        tuple(
            Configuration(number, method, settings)
            for number, (method, settings) in enumerate(configurations, start=1)
        )
    )


RATES = space_of(
    ("lora", {"rank": 2, "learning_rate": 1e-5}),
    ("ia3", {"learning_rate": 1e-5}),
    ("lora", {"rank": 2, "learning_rate": 1e-3}),
    ("prompt-tuning", {"virtual_tokens": 4, "learning_rate": 1e-4}),
    ("lora", {"rank": 2, "learning_rate": 1e-2}),
    ("p-tuning-v2", {"virtual_tokens": 4, "learning_rate": 1e-5}),
)


class Watching(Observer):
    """A watcher that keeps what it is told, and does something at a moment."""

    def __init__(self, moment: Callable[[str], None] | None = None) -> None:
        self.starts: list[JobStart] = []
        self.rungs: list[list[str | None]] = []
        self.notes: list[str] = []
        self.steps = 0
        self._moment = moment or (lambda what: None)

    def started(self, jobs: Sequence[JobStart]) -> None:
        self.starts += jobs
        self._moment("started")

    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        self.steps += 1
        self._moment("step")

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        if "leaderboard" not in record:
            return
        assert step == len(self.rungs) + 1
        entries = record["leaderboard"]
        self.rungs.append([entry.stop.reason if entry.stop else None for entry in entries])
        self._moment("rung")

    def noted(self, text: str, **facts: Any) -> None:
        self.notes.append(text)


def weights(result: RaceResult) -> dict[str, torch.Tensor]:
    return load_file(result.adapter.path / "adapter_model.safetensors")


def alone(base: Base, job: onebase.Job, item: Configuration, epochs: int = 4) -> JobState:
    """The configuration trained to the end by itself."""
    state = JobState(candidate_job(job, item, epochs), base)
    train_together([state], Losses())
    return state


def test_the_best_of_all_trained_to_the_end_wins(
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    base, observer = make_base(), Watching()
    finished = {item.number: alone(base, job, item).best_loss for item in RATES.configurations}
    best = min(finished, key=finished.__getitem__)
    assert best == 5
    result = race(job, base=base, workspace=workspace, space=RATES, observer=observer)
    assert result.end == "finished"
    assert result.entries[0].configuration.number == best
    assert result.adapter.name == "zs@1"
    assert result.adapter.metrics["eval_loss"] == pytest.approx(finished[best], abs=1e-5)
    bare = held_out_loss(plain_model("llama"), JobState(job, base))
    assert result.adapter.metrics["base_eval_loss"] == pytest.approx(bare, abs=1e-5)
    assert [sum(reason is None for reason in rung) for rung in observer.rungs] == [3, 2, 1]
    # Those at the last rung are the best of the true ranking.
    lasting = {
        entry.configuration.number for entry in result.entries if len(entry.rung_losses) == 3
    }
    assert lasting == set(sorted(finished, key=finished.__getitem__)[:2])


@pytest.mark.parametrize(
    ("method", "rate", "limit", "warmup"),
    [
        ("lora", 5e-3, None, 5),
        ("prompt-tuning", 3e-2, None, 5),
        ("p-tuning", 3e-3, None, 5),
        ("lora", 5e-3, Budget(seconds=30), 5),
        ("lora", 5e-3, Budget(seconds=30), 0),
        ("prompt-tuning", 3e-2, Budget(seconds=30), 1),
    ],
)
def test_the_winner_is_what_it_would_be_alone(
    method: str,
    rate: float,
    limit: Budget | None,
    warmup: int,
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    """Whatever it learned beside; and where its length was chosen after its first steps."""
    base = make_base()
    tiny = {"virtual_tokens": 4} if method != "lora" else {"rank": 2, "dropout": 0.2}
    space = space_of(
        (method, {**tiny, "learning_rate": 1e-6}),
        (method, {**tiny, "learning_rate": rate}),
        ("p-tuning-v2", {"virtual_tokens": 4, "learning_rate": 1e-6}),
        (method, {**tiny, "learning_rate": 1e-5}),
    )
    settings = {key: job.set[key] for key in ("batch_size", "held_out")}
    if limit is None:
        settings["epochs"] = 4
    settings["warmup"] = warmup
    result = race(
        replace(job, set=settings), base=base, workspace=workspace, space=space, budget=limit
    )
    assert (result.plan.epochs == 4) == (limit is None)
    winner = result.entries[0].configuration  # 5: the second, trained again for longer
    assert winner.number in ((2,) if limit is None else (2, 5))
    epochs = result.adapter.metrics["race"]["epochs"]
    single = replace(job, method=method, set={**settings, **winner.settings, "epochs": epochs})
    (trained,) = onebase.train([single], base=base, workspace=onebase.Workspace(tmp_path / "s"))
    expected = load_file(trained.path / "adapter_model.safetensors")
    assert trained.metrics["best_step"] == result.adapter.metrics["best_step"]
    for name, found in weights(result).items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=3e-6)


def test_what_it_costs_is_counted(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    result = race(job, base=base, workspace=workspace, count=6)
    data = JobState(candidate_job(job, result.entries[0].configuration, 4), base).data
    # 32 rows, 8 steps an epoch, 4 epochs: rungs after 3, 8 and 16 of 32 steps; 6, 3 and 2 come.
    assert [entry.step for entry in result.entries] == [32, 16, 8, 3, 3, 3]
    assert result.tokens == sum(entry.tokens for entry in result.entries)
    epoch = sum(len(row.ids) for row in data.train)
    assert result.entries[0].tokens == 4 * epoch
    assert result.entries[1].tokens == 2 * epoch
    assert result.entries[2].tokens == epoch
    held = sum(len(row.ids) for row in data.held_out)
    # 11 judgements at rungs, the winner's epochs 3 and 4, the bare base.
    assert result.evaluated_tokens == (11 + 2 + 1) * held == result.plan.evaluated
    assert result.tokens == pytest.approx(result.plan.trained, rel=0.02)


def test_what_it_leaves(
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    result = race(job, base=make_base(), workspace=workspace, count=6)
    record = result.adapter.record
    assert record["run"] == result.run.id
    assert record["metrics"]["race"]["configurations"] == 6
    assert record["metrics"]["race"]["tokens"] == result.tokens
    assert record["metrics"]["race"]["number"] == result.entries[0].configuration.number
    saved = json.loads((result.run.path / "ladder.json").read_text(encoding="utf-8"))
    assert saved["task"] == "zs"
    assert saved["ladder"] == result.leaderboard
    assert [row["rank"] for row in saved["ladder"]] == [1, 2, 3, 4, 5, 6]
    assert [row["left"] and row["left"]["rung"] for row in saved["ladder"]] == [
        *(None, 3, 2),
        *(1, 1, 1),
    ]
    assert [len([x for x in row["losses"] if x["rung"]]) for row in saved["ladder"]] == [
        *(3, 3, 2),
        *(1, 1, 1),
    ]
    assert result.plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    run = RunStore(workspace).get(result.run.id)
    assert run.status == "finished"
    assert run.summary["adapters"][0]["version"] == 1
    assert run.config["race"]["configurations"] == 6
    assert [item["task"] for item in run.config["jobs"]] == [f"zs-{n:02d}" for n in range(1, 7)]
    metrics = run.metrics()
    steps = [line for line in metrics if "learning_rate" in line]
    assert len(steps) == sum(entry.step for entry in result.entries)
    assert sum("base_eval_loss" in line for line in metrics) == 1
    base = make_base()
    (answer,) = onebase.Engine(base, [result.adapter]).generate([("zs", "parcel")])
    prompt = torch.tensor([base.tokenizer(answer.prompt)["input_ids"]])
    model = peft.PeftModel.from_pretrained(plain_model("llama"), str(result.adapter.path)).eval()
    tokens = model.generate(input_ids=prompt, max_new_tokens=128, do_sample=False)[0]
    expected = base.tokenizer.decode(tokens[prompt.shape[1] :], skip_special_tokens=True)
    assert answer.text == expected


def test_who_leaves_is_freed(
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[weakref.ref[JobState]] = []
    alive: list[int] = []
    build = JobState.__init__

    def remembered(self: JobState, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        seen.append(weakref.ref(self))

    def moment(what: str) -> None:
        if what == "rung":
            alive.append(sum(state() is not None for state in seen))

    monkeypatch.setattr(JobState, "__init__", remembered)
    race(job, base=make_base(), workspace=workspace, count=6, observer=Watching(moment))
    assert alive == [3, 2, 1]


def test_a_large_held_out_part_is_sampled_until_the_end(
    tmp_path: Path, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    held = write_rows(tmp_path, "held", 90, seed=3)
    settings = {"batch_size": 4, "epochs": 4}
    job = onebase.Job("zs", write_rows(tmp_path, "a", 24), held_out=held, set=settings)
    result = race(job, base=make_base(), workspace=workspace, space=RATES)
    assert result.plan.evaluation_rows == 10  # the least that a rung is judged by
    winner = result.entries[0]
    sampled = result.plan.evaluation_rows
    assert [item.rows for item in winner.evaluations] == [sampled, sampled, 90, 90, 90]
    assert [item.rung for item in winner.evaluations] == [1, 2, 3, None, None]
    assert result.adapter.metrics["eval_loss"] == min(item.loss for item in winner.evaluations[2:])
    assert result.evaluated_tokens == pytest.approx(result.plan.evaluated, rel=0.02)
    assert result.adapter.metrics["race"]["judged_rows"] == 90


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[float]]:
    """Held-out losses by a configuration's number (0: a job alone), in the order in which it is
    asked for them; 1 for all others. Two of nine configurations may learn to the end.
    """
    losses: dict[int, list[float]] = {}
    real = loop_module.mean_losses

    def next_loss(name: str) -> float:
        number = name.rpartition("-")[2]
        stop = losses.get(int(number) if number.isdigit() else 0)
        return stop.pop(0) if stop else 1.0

    def mean_losses(*args: Any, **kwargs: Any) -> dict[str, float]:
        return {name: next_loss(name) for name in real(*args, **kwargs)}

    monkeypatch.setattr(loop_module, "mean_losses", mean_losses)
    monkeypatch.setattr(budget_module, "_MOST_SHARE", 1)
    return losses


NINE = space_of(*[("lora", {"rank": 2, "learning_rate": number / 1e4}) for number in range(1, 10)])


def test_of_two_finalists_the_better_at_the_end_wins(
    told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    # Three rungs, then the epochs 3 and 4.
    told[5] = [0.5, 0.4, 0.3, 0.31, 0.29]
    told[3] = [0.6, 0.5, 0.35, 0.36, 0.2]
    base, observer = make_base(), Watching()
    result = race(job, base=base, workspace=workspace, space=NINE, count=9, observer=observer)
    assert [sum(reason is None for reason in rung) for rung in observer.rungs] == [3, 2, 2]
    assert [entry.configuration.number for entry in result.entries][:2] == [3, 5]
    second = result.entries[1]
    assert second.stop == Stop(4, "outdone")
    assert second.step == result.entries[0].step == 32
    assert result.adapter.metrics["eval_loss"] == 0.2
    assert result.tokens == pytest.approx(result.plan.trained, rel=0.02)
    told[0] = [0.9, 0.8, 0.7, 0.6]
    single = replace(job, set={**NINE.configurations[2].settings, **job.set})
    (trained,) = onebase.train([single], base=base, workspace=onebase.Workspace(tmp_path / "s"))
    expected = load_file(trained.path / "adapter_model.safetensors")
    for name, found in weights(result).items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=3e-6)


def test_a_finalist_s_best_may_lie_before_the_end(
    told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    told[5] = [0.5, 0.4, 0.2, 0.4, 0.4]
    told[3] = [0.6, 0.5, 0.35, 0.36, 0.3]
    result = race(job, base=make_base(), workspace=workspace, space=NINE, count=9)
    assert [entry.configuration.number for entry in result.entries][:2] == [5, 3]
    assert result.adapter.metrics["eval_loss"] == 0.2
    assert result.adapter.metrics["best_step"] == 16


def test_ctrl_c_between_finalists_leaves_the_better(
    told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    told[5] = [0.5, 0.4, 0.3, 0.31]
    told[3] = [0.6, 0.5, 0.35, 0.25, 0.26]
    # 9 * 3 + 3 * 5 + 2 * 8 steps to the last rung, 2 * 8 to the end of the third epoch.
    observer = Watching(pressing(27 + 15 + 16 + 16 + 3))
    result = race(
        job, base=make_base(), workspace=workspace, space=NINE, count=9, observer=observer
    )
    assert result.end == "interrupted"
    assert [entry.configuration.number for entry in result.entries][:2] == [3, 5]
    assert result.entries[1].stop == Stop(4, "stopped")
    assert result.adapter.metrics["eval_loss"] == 0.25
    assert result.adapter.metrics["best_step"] == 24


def test_a_finalist_that_explodes_can_win_by_what_it_was(
    told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told[5] = [0.5, 0.4, 0.2]
    told[3] = [0.6, 0.5, 0.35, 0.36, 0.3]
    real = JobState.record_loss

    def troubled(self: JobState, loss: float) -> Any:
        wild = self.step >= 20 and self.job.task.endswith("05")
        return "exploded" if wild else real(self, loss)

    monkeypatch.setattr(JobState, "record_loss", troubled)
    result = race(job, base=make_base(), workspace=workspace, space=NINE, count=9)
    assert result.end == "finished"
    assert result.entries[0].configuration.number == 5
    assert result.entries[0].step == 20
    assert result.entries[1].stop == Stop(4, "outdone")
    assert result.adapter.metrics["best_step"] == 16


def test_a_state_of_an_earlier_rung_can_win(
    told: dict[int, list[float]],
    tmp_path: Path,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    """By the sample it is the best of its kind, so all rows judge it and not the present one."""
    held = write_rows(tmp_path, "held", 90, seed=3)
    settings = {"batch_size": 4, "epochs": 4}
    job = onebase.Job("zs", write_rows(tmp_path, "a", 24), held_out=held, set=settings)
    told[5] = [0.5, 0.1, 0.3, 0.15, 0.4, 0.4]  # at the last rung by the sample, then by all rows
    told[3] = [0.6, 0.5, 0.2, 0.25, 0.3, 0.3]
    result = race(job, base=make_base(), workspace=workspace, space=NINE, count=9)
    winner = result.entries[0]
    assert winner.configuration.number == 5
    assert [(item.rung, item.step, item.loss) for item in winner.evaluations] == [
        *((1, 2, 0.5), (2, 6, 0.1), (3, 6, 0.15)),
        *((None, 18, 0.4), (None, 24, 0.4)),
    ]
    assert winner.evaluations[2].tokens == winner.evaluations[1].tokens
    assert result.adapter.metrics["best_step"] == 6
    assert result.adapter.metrics["eval_loss"] == 0.15


def test_what_explodes_leaves_alone(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    wild = space_of(
        ("lora", {"rank": 2, "learning_rate": 1e30}), *((c.method, dict(c.settings)) for c in
        RATES.configurations)
    )  # fmt: skip
    result = race(job, base=make_base(), workspace=workspace, space=wild)
    assert result.end == "finished"
    assert result.entries[0].configuration.number == 6
    last = result.entries[-1]
    assert last.configuration.number == 1
    assert last.stop is not None
    assert (last.stop.rung, last.stop.reason) == (1, "not finite")
    assert last.evaluations == []
    json.loads((result.run.path / "ladder.json").read_text(encoding="utf-8"), parse_constant=fail)


def fail(constant: str) -> None:
    raise AssertionError(constant)  # NaN and Infinity are no JSON


def test_where_all_explode_nothing_is_stored(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    wild = space_of(("lora", {"learning_rate": 1e30}), ("lora", {"rank": 2, "learning_rate": 1e30}))
    with pytest.raises(onebase.OnebaseError, match=r"all 2 configurations.*lower learning rates"):
        race(job, base=make_base(), workspace=workspace, space=wild)
    assert onebase.AdapterStore(workspace).list() == []
    (run,) = RunStore(workspace).list()
    assert run.status == "failed"
    assert not run.resumable


def test_where_all_explode_later_the_best_before_is_kept(
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the first rung every loss is NaN."""
    real = JobState.record_loss

    def troubled(self: JobState, loss: float) -> Any:
        return "exploded" if self.step >= 6 else real(self, loss)

    monkeypatch.setattr(JobState, "record_loss", troubled)
    result = race(job, base=make_base(), workspace=workspace, space=RATES)
    assert result.end == "nobody left"
    assert result.entries[0].configuration.number == 5
    assert result.adapter.metrics["best_step"] == 3
    assert result.adapter.metrics["eval_loss"] == result.entries[0].rung_losses[0]
    assert [entry.stop.reason for entry in result.entries if entry.stop][:2] == ["exploded"] * 2


def pressing(at: int, times: int = 1) -> Callable[[str], None]:
    """Presses Ctrl-C in the step after which `at` steps of all configurations are made."""
    steps = iter(range(1, 10_000))

    def moment(what: str) -> None:
        if what == "step" and next(steps) == at:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return moment


@pytest.mark.parametrize(
    ("at", "step", "rungs", "number"),
    [
        (6, 1, 0, 1),  # in the first joint step: 6 configurations, three of equal losses so far
        (12, 2, 0, 5),
        (21, 4, 1, 5),  # 6 * 3 to the first rung, then 3 at a time
        (57, 24, 3, 5),  # 18 + 15 + 16 to the last one, then the finalist alone
    ],
)
def test_ctrl_c_leaves_the_best_so_far(
    at: int,
    step: int,
    rungs: int,
    number: int,
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    base, observer = make_base(), Watching(pressing(at))
    result = race(job, base=base, workspace=workspace, space=RATES, observer=observer)
    assert result.end == "interrupted"
    assert observer.steps == at
    assert len(observer.rungs) == rungs
    assert result.adapter.name == "zs@1"
    winner = result.entries[0]
    assert winner.configuration.number == number
    assert winner.step == step
    assert result.adapter.metrics["eval_loss"] == min(item.loss for item in winner.evaluations)
    assert result.adapter.metrics["eval_loss"] < result.adapter.metrics["base_eval_loss"]
    run = RunStore(workspace).get(result.run.id)
    assert run.status == "interrupted"
    assert not run.resumable
    with pytest.raises(UsageError, match="is a race, and a race can't be resumed"):
        resume(run.id, base=base, workspace=workspace)
    others = [entry for entry in result.entries if entry is not winner]
    assert [entry.stop is not None for entry in others] == [True] * 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("at", [12, 21])
def test_a_second_one_leaves_it_unjudged(
    at: int,
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one in a step, the second while the best is being judged."""
    real = training_module.evaluate_together
    pressed = False

    def judged(*args: Any, **kwargs: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    press = pressing(at)

    def moment(what: str) -> None:
        nonlocal pressed
        press(what)
        pressed = observer.steps >= at

    monkeypatch.setattr(training_module, "evaluate_together", judged)
    observer = Watching(moment)
    result = race(job, base=make_base(), workspace=workspace, space=RATES, observer=observer)
    assert result.end == "interrupted"
    metrics = result.adapter.metrics
    if at == 12:  # before the first rung there was no other judgement
        assert metrics["eval_loss"] is None
        assert metrics["best_step"] == 2
        assert result.entries[0].configuration.number == 5
    else:
        assert metrics["eval_loss"] == result.entries[0].rung_losses[0]
        assert metrics["best_step"] == 3


def test_before_the_first_step_there_is_nothing(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    def moment(what: str) -> None:
        if what == "started":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"had not been stored yet.*onebase race"):
        race(job, base=make_base(), workspace=workspace, count=2, observer=Watching(moment))
    assert onebase.AdapterStore(workspace).list() == []
    (run,) = RunStore(workspace).list()
    assert run.status == "interrupted"
    assert not run.resumable


def test_tokens_end_a_race(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    """Count and epochs given, so that nothing smaller can be chosen."""
    limit = Budget(tokens=4000)
    observer = Watching()
    result = race(
        job,
        base=make_base(),
        workspace=workspace,
        space=RATES,
        count=6,
        budget=limit,
        observer=observer,
    )
    assert result.end == "out of budget"
    assert observer.starts[0].total > limit.tokens
    lines = RunStore(workspace).get(result.run.id).metrics()
    learned: dict[str, list[int]] = {}  # of every configuration, after each of its steps
    for line in lines:
        if "learning_rate" in line:
            learned.setdefault(line["task"], [0]).append(line["tokens"])
    steps = max(map(len, learned.values()))
    last = sum(one[-1] - one[-2] for one in learned.values() if len(one) == steps)
    assert result.tokens == sum(one[-1] for one in learned.values())
    assert result.tokens <= limit.tokens < result.tokens + last
    assert result.entries[0].configuration.number == 5
    assert RunStore(workspace).get(result.run.id).status == "finished"


def test_tokens_choose_a_race_within_them(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    settings = {key: job.set[key] for key in ("batch_size", "held_out")}
    result = race(
        replace(job, set=settings),
        base=make_base(),
        workspace=workspace,
        budget=Budget(tokens=20_000),
    )
    assert result.end == "finished"
    assert (result.plan.count, result.plan.epochs) == (12, 3)
    assert 15_000 < result.tokens <= 20_000


def test_time_ends_a_race(
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that runs a second a step."""
    seconds = 0.0

    def moment(what: str) -> None:
        nonlocal seconds
        seconds += what == "step"

    began = time.monotonic()
    monkeypatch.setattr(budget_module.time, "monotonic", lambda: began + seconds)
    result = race(
        job,
        base=make_base(),
        workspace=workspace,
        space=RATES,
        count=6,
        budget=Budget(seconds=40),
        observer=Watching(moment),
    )
    assert result.end == "out of budget"
    assert seconds == 41  # 18 to the first rung, 15 to the second, then two at a time
    assert result.entries[0].configuration.number == 5
    assert len(result.entries[0].rung_losses) == 2


def test_a_time_budget_measures_first_and_wastes_nothing(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    settings = {key: job.set[key] for key in ("batch_size", "held_out")}
    observer = Watching()
    result = race(
        replace(job, set=settings),
        base=make_base(),
        workspace=workspace,
        budget=Budget(seconds=2),
        observer=observer,
    )
    plan = result.plan
    assert len(observer.starts) == 1
    assert len(result.entries) == plan.count
    assert result.run.config["race"]["configurations"] == plan.count
    assert len(result.run.config["jobs"]) == plan.count
    assert result.run.config["jobs"][0]["set"]["epochs"] == plan.epochs
    assert result.seconds < 3


def test_two_races_with_one_seed_are_one(
    job: onebase.Job, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    found = []
    for turn in range(2):
        torch.manual_seed(turn)
        result = race(
            job, base=make_base(), workspace=onebase.Workspace(tmp_path / str(turn)), count=6
        )
        found.append((result.adapter.record["sha256"], result.leaderboard))
    assert found[0] == found[1]


def test_bad_rows_are_written_down_once(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    with Path(job.data).open("a", encoding="utf-8") as stream:
        stream.write('{"input": "and this?", "output": ""}\n')
    with pytest.raises(DataError, match="41"):
        race(job, base=make_base(), workspace=workspace, count=2)
    assert not workspace.root.exists()
    result = race(replace(job, skip_bad=True), base=make_base(), workspace=workspace, count=2)
    assert [file.name for file in result.run.path.glob("skipped-*")] == ["skipped-zs.jsonl"]


@pytest.mark.parametrize("full", ["ladder.json", "ladder.png"])
def test_a_full_disk_costs_the_ladder_and_not_the_winner(
    full: str,
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(file: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    name = {"ladder.json": "write_leaderboard", "ladder.png": "draw_leaderboard"}[full]
    monkeypatch.setattr(race_module, name, refused)
    observer = Watching()
    result = race(
        job, base=make_base(), workspace=workspace, space=RATES, count=3, observer=observer
    )
    assert onebase.AdapterStore(workspace).get("zs").name == result.adapter.name
    assert result.run.status == "finished"
    assert any("No space left on device" in text for text in observer.notes)


@pytest.mark.parametrize(
    ("changes", "space", "named"),
    [
        ({"set": {"held_out": 0}}, None, "needs held-out rows.*--held-out"),
        ({"set": {"rank": 4}}, None, "'rank'.*prompt-tuning|setting of p-tuning-v2: 'rank'"),
        ({"set": {"epocs": 4}}, None, "'epochs'"),
        ({"task": "base"}, None, "'base'"),
        ({"seed": -1}, None, "seed=-1"),
        ({}, space_of(("lora", {"rank": 0}), ("ia3", {})), "rank=0"),
        ({}, space_of(("lora", {})), "A race of 1"),
    ],
)
def test_what_can_t_be_raced_is_refused_before_anything_is_written(
    changes: dict[str, Any],
    space: Space | None,
    named: str,
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    with pytest.raises(UsageError, match=named):
        race(replace(job, **changes), base=make_base(), workspace=workspace, space=space)
    assert not workspace.root.exists()


def test_patience_counts_epochs_not_rungs(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    """Every later loss is worse: rungs don't end a training, the epochs at its end do."""
    worse = iter(range(1, 1000))
    monkeypatch = pytest.MonkeyPatch()
    real = JobState.record_evaluation

    def record_evaluation(self: JobState, loss: float | None) -> bool:
        return real(self, float(next(worse)))

    settings = {**job.set, "patience": 1, "epochs": 8}
    with monkeypatch.context() as patched:
        patched.setattr(JobState, "record_evaluation", record_evaluation)
        result = race(
            replace(job, set=settings), base=make_base(), workspace=workspace, space=RATES
        )
    # Rungs after 5, 16 and 32 steps of 64; the first epoch beyond them has no better loss.
    assert result.entries[0].step == 40
    assert result.end == "finished"


def test_settings_given_for_all_hold_for_all(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    settings = {**job.set, "rank": 4}
    space = default_space(["lora"], fixed=list(settings))
    result = race(
        replace(job, set=settings), base=make_base(), workspace=workspace, space=space, count=4
    )
    assert {item["set"]["rank"] for item in result.run.config["jobs"]} == {4}


def test_full_fine_tuning_races_beside_adapters(
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    """Each on a copy of its own."""
    base = make_base()
    before = base.fingerprint
    space = space_of(
        ("full", {"learning_rate": 1e-6}),
        ("lora", {"rank": 2, "learning_rate": 1e-6}),
        ("full", {"learning_rate": 3e-3}),
    )
    result = race(job, base=base, workspace=workspace, space=space)
    assert result.entries[0].configuration.number == 3
    assert [entry.step for entry in result.entries] == [32, 16, 8]
    assert base.fingerprint == before
    winner = type(plain_model("llama")).from_pretrained(result.adapter.path)
    loss = held_out_loss(winner, JobState(job, base))
    assert result.adapter.metrics["eval_loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("rows", [3, 5])
def test_a_race_over_one_or_two_steps(
    rows: int, tmp_path: Path, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    settings = {"batch_size": 2, "epochs": 1, "held_out": 0.3}
    job = onebase.Job("zs", write_rows(tmp_path, "a", rows), set=settings)
    result = race(job, base=make_base(), workspace=workspace, count=3)
    assert result.end == "finished"
    assert result.adapter.metrics["eval_loss"] == result.entries[0].rung_losses[-1]
    assert len(result.entries[0].rung_losses) == 3


def test_the_top_layers_race_over_one_trunk(
    job: onebase.Job,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As without a trunk, and what lies below is computed once for each text and depth."""
    space = space_of(
        ("lora", {"rank": 2, "layers": "top:1"}),
        ("ia3", {"layers": "top:1"}),
        ("p-tuning-v2", {"virtual_tokens": 4, "layers": "top:2"}),
        ("lora", {"rank": 2, "learning_rate": 1e-5}),
    )
    computed: list[int] = []
    real = trunk_module.run_below

    def counted(base: Base, pack: Any, layer: int) -> torch.Tensor:
        computed.append(len(pack.ids))
        return real(base, pack, layer)

    monkeypatch.setattr(trunk_module, "run_below", counted)
    ladders = []
    for kind in ("fp32", "none"):
        result = race(
            replace(job, set={**job.set, "trunk": kind}),
            base=make_base(),
            workspace=onebase.Workspace(tmp_path / kind),
            space=space,
            count=4,
        )
        ladders.append(result)
        if kind == "fp32":
            once = sum(computed)
            texts = sum(len(row) for row in {row.ids for row in raced_rows(job, make_base())})
            assert texts < once <= 2 * texts  # at two depths, a common beginning once
    one, other = ladders
    assert sum(computed) == once  # without a trunk nothing is
    for ours, theirs in zip(one.entries, other.entries, strict=True):
        assert ours.configuration == theirs.configuration
        assert ours.rung_losses == pytest.approx(theirs.rung_losses, abs=1e-4)


def raced_rows(job: onebase.Job, base: Base) -> list[Any]:
    state = JobState(job, base)
    return [*state.data.train, *state.data.held_out]


def test_a_race_on_given_rows_is_that_on_the_file(
    job: onebase.Job, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base, moment = make_base(), datetime(2024, 2, 29, 12, 0)
    template = Template(base.tokenizer, instruction=job.instruction, moment=moment)
    data = task_data(job, template)
    elsewhere = replace(job, data=tmp_path / "none.jsonl", set={**job.set, "held_out": 0.0})
    built: list[datetime | None] = []
    real = JobState.__init__

    def remembered(self: JobState, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        built.append(self.template.moment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobState, "__init__", remembered)
        given = race(
            elsewhere,
            base=base,
            workspace=onebase.Workspace(tmp_path / "given"),
            space=RATES,
            count=3,
            data=data,
            rendered_at=moment,
        )
    assert set(built) == {moment}
    read = race(job, base=base, workspace=onebase.Workspace(tmp_path / "r"), space=RATES, count=3)
    assert given.leaderboard == read.leaderboard
    assert given.adapter.record["sha256"] == read.adapter.record["sha256"]


def test_given_rows_need_some_held_out(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    data = task_data(job, Template(base.tokenizer, instruction=job.instruction))
    with pytest.raises(onebase.OnebaseError, match="needs held-out rows"):
        race(job, base=base, workspace=workspace, count=3, data=replace(data, held_out=[]))
