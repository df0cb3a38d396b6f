"""Races: who wins, what it costs, and what is left when one ends early."""

import errno
import json
import signal
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_loop import Losses, held_out_loss, write_rows

import onebase
from onebase.engine import trunk as trunk_module
from onebase.errors import DataError, UsageError
from onebase.model.base import Base
from onebase.runs.interruption import Interrupted
from onebase.runs.run import RunStore
from onebase.search.budget import Budget, RacePlan
from onebase.search.leaderboard import Left, Place
from onebase.search.race import Raced, race
from onebase.search.space import Configuration, Space, default_space
from onebase.search.successive_halving import entrant_job
from onebase.training import budget as budget_module
from onebase.training import course as course_module
from onebase.training import loop as loop_module
from onebase.training import race as race_module
from onebase.training.job_state import Learner
from onebase.training.loop import train_together
from onebase.training.resume import resume


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


@pytest.fixture(autouse=True)
def _python_s_own_ctrl_c() -> Iterator[None]:
    """In the background a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def workspace(tmp_path: Path) -> onebase.Workspace:
    return onebase.Workspace(tmp_path / "w")


@pytest.fixture
def job(tmp_path: Path) -> onebase.Job:
    settings = {"batch_size": 4, "epochs": 4, "held_out": 0.2}
    return onebase.Job("zs", write_rows(tmp_path, "a", 40), instruction="Say it.", set=settings)


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


class Watching:
    """A watcher that keeps what it is told, and does something at a moment."""

    def __init__(self, moment: Callable[[str, Learner | None], None] | None = None) -> None:
        self.plans: list[RacePlan] = []
        self.rungs: list[list[str | None]] = []
        self.notes: list[str] = []
        self.steps = 0
        self._moment = moment or (lambda what, learner: None)

    def started(self, learners: Sequence[Learner]) -> None:
        pass

    def planned(self, plan: RacePlan, configurations: Sequence[Configuration]) -> None:
        assert len(configurations) == plan.count
        self.plans.append(plan)
        self._moment("planned", None)

    def learned(self, learner: Learner, record: dict[str, Any]) -> None:
        self.steps += 1
        self._moment("learned", learner)

    def judged(self, learner: Learner, record: dict[str, Any]) -> None:
        self._moment("judged", learner)

    def halved(self, rung: int, places: Sequence[Place]) -> None:
        assert rung == len(self.rungs) + 1
        self.rungs.append([place.left.reason if place.left else None for place in places])
        self._moment("halved", None)

    def noted(self, text: str) -> None:
        self.notes.append(text)


def weights(raced: Raced) -> dict[str, torch.Tensor]:
    return load_file(raced.adapter.path / "adapter_model.safetensors")


def alone(base: Base, job: onebase.Job, item: Configuration, epochs: int = 4) -> Learner:
    """The configuration trained to the end by itself."""
    learner = Learner(entrant_job(job, item, epochs), base)
    train_together([learner], Losses())
    return learner


def test_the_best_of_all_trained_to_the_end_wins(
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    base, watcher = make_base(), Watching()
    finished = {item.number: alone(base, job, item).best_loss for item in RATES.configurations}
    best = min(finished, key=finished.__getitem__)
    assert best == 5
    raced = race(job, base=base, workspace=workspace, space=RATES, watcher=watcher)
    assert raced.end == "finished"
    assert raced.places[0].configuration.number == best
    assert raced.adapter.name == "zs@1"
    assert raced.adapter.metrics["eval_loss"] == pytest.approx(finished[best], abs=1e-5)
    bare = held_out_loss(plain_model("llama"), Learner(job, base))
    assert raced.adapter.metrics["base_eval_loss"] == pytest.approx(bare, abs=1e-5)
    assert [sum(reason is None for reason in rung) for rung in watcher.rungs] == [3, 2, 1]
    # Those at the last rung are the best of the true ranking.
    lasting = {place.configuration.number for place in raced.places if len(place.rungs) == 3}
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
    raced = race(
        replace(job, set=settings), base=base, workspace=workspace, space=space, budget=limit
    )
    assert (raced.plan.epochs == 4) == (limit is None)
    assert raced.places[0].configuration.number == 2
    single = replace(job, method=method, set={**space.configurations[1].settings, **settings})
    single = replace(single, set={**single.set, "epochs": raced.plan.epochs})
    (trained,) = onebase.train([single], base=base, workspace=onebase.Workspace(tmp_path / "s"))
    expected = load_file(trained.path / "adapter_model.safetensors")
    assert trained.metrics["best_step"] == raced.adapter.metrics["best_step"]
    for name, found in weights(raced).items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=3e-6)


def test_what_it_costs_is_counted(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    raced = race(job, base=base, workspace=workspace, count=6)
    data = Learner(entrant_job(job, raced.places[0].configuration, 4), base).data
    # 32 rows, 8 steps an epoch, 4 epochs: rungs after 3, 8 and 16 of 32 steps; 6, 3 and 2 come.
    assert [place.step for place in raced.places] == [32, 16, 8, 3, 3, 3]
    assert raced.tokens == sum(place.tokens for place in raced.places)
    epoch = sum(len(row.ids) for row in data.train)
    assert raced.places[0].tokens == 4 * epoch
    assert raced.places[1].tokens == 2 * epoch
    assert raced.places[2].tokens == epoch
    held = sum(len(row.ids) for row in data.held_out)
    # 11 judgements at rungs, the winner's epochs 3 and 4, the bare base.
    assert raced.judged_tokens == (11 + 2 + 1) * held == raced.plan.judged
    assert raced.tokens == pytest.approx(raced.plan.learned, rel=0.02)


def test_what_it_leaves(
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    raced = race(job, base=make_base(), workspace=workspace, count=6)
    record = raced.adapter.record
    assert record["run"] == raced.run.id
    assert record["metrics"]["race"]["configurations"] == 6
    assert record["metrics"]["race"]["tokens"] == raced.tokens
    assert record["metrics"]["race"]["number"] == raced.places[0].configuration.number
    saved = json.loads((raced.run.path / "ladder.json").read_text(encoding="utf-8"))
    assert saved["task"] == "zs"
    assert saved["ladder"] == raced.ladder
    assert [row["rank"] for row in saved["ladder"]] == [1, 2, 3, 4, 5, 6]
    assert [row["left"] and row["left"]["rung"] for row in saved["ladder"]] == [
        *(None, 3, 2),
        *(1, 1, 1),
    ]
    assert [len([x for x in row["losses"] if x["rung"]]) for row in saved["ladder"]] == [
        *(3, 3, 2),
        *(1, 1, 1),
    ]
    assert raced.plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    run = RunStore(workspace).get(raced.run.id)
    assert run.status == "finished"
    assert run.summary["adapters"][0]["version"] == 1
    assert run.config["race"]["configurations"] == 6
    assert [item["task"] for item in run.config["jobs"]] == [f"zs-{n:02d}" for n in range(1, 7)]
    metrics = run.metrics()
    steps = [line for line in metrics if "learning_rate" in line]
    assert len(steps) == sum(place.step for place in raced.places)
    assert sum("base_eval_loss" in line for line in metrics) == 1
    base = make_base()
    (answer,) = onebase.Engine(base, [raced.adapter]).generate([("zs", "parcel")])
    prompt = torch.tensor([base.tokenizer(answer.prompt)["input_ids"]])
    model = peft.PeftModel.from_pretrained(plain_model("llama"), str(raced.adapter.path)).eval()
    tokens = model.generate(input_ids=prompt, max_new_tokens=128, do_sample=False)[0]
    expected = base.tokenizer.decode(tokens[prompt.shape[1] :], skip_special_tokens=True)
    assert answer.text == expected


def test_who_leaves_is_freed(
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    seen: dict[str, weakref.ref[Learner]] = {}
    alive: list[int] = []

    def moment(what: str, learner: Learner | None) -> None:
        if learner is not None:
            seen[learner.job.task] = weakref.ref(learner)
            del learner
        if what == "halved":
            alive.append(sum(found() is not None for found in seen.values()))

    race(job, base=make_base(), workspace=workspace, count=6, watcher=Watching(moment))
    assert alive == [3, 2, 1]


def test_a_large_held_out_part_is_sampled_until_the_end(
    tmp_path: Path, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    held = write_rows(tmp_path, "held", 90, seed=3)
    settings = {"batch_size": 4, "epochs": 4}
    job = onebase.Job("zs", write_rows(tmp_path, "a", 24), held_out=held, set=settings)
    raced = race(job, base=make_base(), workspace=workspace, space=RATES)
    assert raced.plan.judged_rows == 10  # the least that a rung is judged by
    winner = raced.places[0]
    sampled = raced.plan.judged_rows
    assert [item.rows for item in winner.judged] == [sampled, sampled, 90, 90, 90]
    assert [item.rung for item in winner.judged] == [1, 2, 3, None, None]
    assert raced.adapter.metrics["eval_loss"] == min(item.loss for item in winner.judged[2:])
    assert raced.judged_tokens == pytest.approx(raced.plan.judged, rel=0.02)
    assert raced.adapter.metrics["race"]["judged_rows"] == 90


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[float]]:
    """Held-out losses by a configuration's number (0: a job alone), in the order in which it is
    asked for them; 1 for all others. Two of nine configurations may learn to the end.
    """
    losses: dict[int, list[float]] = {}
    real = loop_module.mean_losses

    def next_loss(name: str) -> float:
        number = name.rpartition("-")[2]
        left = losses.get(int(number) if number.isdigit() else 0)
        return left.pop(0) if left else 1.0

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
    base, watcher = make_base(), Watching()
    raced = race(job, base=base, workspace=workspace, space=NINE, count=9, watcher=watcher)
    assert [sum(reason is None for reason in rung) for rung in watcher.rungs] == [3, 2, 2]
    assert [place.configuration.number for place in raced.places][:2] == [3, 5]
    second = raced.places[1]
    assert second.left == Left(4, "outdone")
    assert second.step == raced.places[0].step == 32
    assert raced.adapter.metrics["eval_loss"] == 0.2
    assert raced.tokens == pytest.approx(raced.plan.learned, rel=0.02)
    told[0] = [0.9, 0.8, 0.7, 0.6]
    single = replace(job, set={**NINE.configurations[2].settings, **job.set})
    (trained,) = onebase.train([single], base=base, workspace=onebase.Workspace(tmp_path / "s"))
    expected = load_file(trained.path / "adapter_model.safetensors")
    for name, found in weights(raced).items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=3e-6)


def test_a_finalist_s_best_may_lie_before_the_end(
    told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    told[5] = [0.5, 0.4, 0.2, 0.4, 0.4]
    told[3] = [0.6, 0.5, 0.35, 0.36, 0.3]
    raced = race(job, base=make_base(), workspace=workspace, space=NINE, count=9)
    assert [place.configuration.number for place in raced.places][:2] == [5, 3]
    assert raced.adapter.metrics["eval_loss"] == 0.2
    assert raced.adapter.metrics["best_step"] == 16


def test_ctrl_c_between_finalists_leaves_the_better(
    told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    told[5] = [0.5, 0.4, 0.3, 0.31]
    told[3] = [0.6, 0.5, 0.35, 0.25, 0.26]
    # 9 * 3 + 3 * 5 + 2 * 8 steps to the last rung, 2 * 8 to the end of the third epoch.
    watcher = Watching(pressing(27 + 15 + 16 + 16 + 3))
    raced = race(job, base=make_base(), workspace=workspace, space=NINE, count=9, watcher=watcher)
    assert raced.end == "interrupted"
    assert [place.configuration.number for place in raced.places][:2] == [3, 5]
    assert raced.places[1].left == Left(4, "stopped")
    assert raced.adapter.metrics["eval_loss"] == 0.25
    assert raced.adapter.metrics["best_step"] == 24


def test_a_finalist_that_explodes_can_win_by_what_it_was(
    told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told[5] = [0.5, 0.4, 0.2]
    told[3] = [0.6, 0.5, 0.35, 0.36, 0.3]
    real = Learner.trouble_with

    def troubled(self: Learner, loss: float) -> Any:
        wild = self.step >= 20 and self.job.task.endswith("05")
        return "exploded" if wild else real(self, loss)

    monkeypatch.setattr(Learner, "trouble_with", troubled)
    raced = race(job, base=make_base(), workspace=workspace, space=NINE, count=9)
    assert raced.end == "finished"
    assert raced.places[0].configuration.number == 5
    assert raced.places[0].step == 20
    assert raced.places[1].left == Left(4, "outdone")
    assert raced.adapter.metrics["best_step"] == 16


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
    raced = race(job, base=make_base(), workspace=workspace, space=NINE, count=9)
    winner = raced.places[0]
    assert winner.configuration.number == 5
    assert [(item.rung, item.step, item.loss) for item in winner.judged] == [
        *((1, 2, 0.5), (2, 6, 0.1), (3, 6, 0.15)),
        *((None, 18, 0.4), (None, 24, 0.4)),
    ]
    assert winner.judged[2].tokens == winner.judged[1].tokens
    assert raced.adapter.metrics["best_step"] == 6
    assert raced.adapter.metrics["eval_loss"] == 0.15


def test_what_explodes_leaves_alone(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    wild = space_of(
        ("lora", {"rank": 2, "learning_rate": 1e30}), *((c.method, dict(c.settings)) for c in
        RATES.configurations)
    )  # fmt: skip
    raced = race(job, base=make_base(), workspace=workspace, space=wild)
    assert raced.end == "finished"
    assert raced.places[0].configuration.number == 6
    last = raced.places[-1]
    assert last.configuration.number == 1
    assert last.left is not None
    assert (last.left.rung, last.left.reason) == (1, "not finite")
    assert last.judged == []
    json.loads((raced.run.path / "ladder.json").read_text(encoding="utf-8"), parse_constant=fail)


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
    real = Learner.trouble_with

    def troubled(self: Learner, loss: float) -> Any:
        return "exploded" if self.step >= 6 else real(self, loss)

    monkeypatch.setattr(Learner, "trouble_with", troubled)
    raced = race(job, base=make_base(), workspace=workspace, space=RATES)
    assert raced.end == "nobody left"
    assert raced.places[0].configuration.number == 5
    assert raced.adapter.metrics["best_step"] == 3
    assert raced.adapter.metrics["eval_loss"] == raced.places[0].rungs[0]
    assert [place.left.reason for place in raced.places if place.left][:2] == ["exploded"] * 2


def pressing(at: int, times: int = 1) -> Callable[[str, Learner | None], None]:
    """Presses Ctrl-C in the step after which `at` steps of all configurations are made."""
    steps = iter(range(1, 10_000))

    def moment(what: str, learner: Learner | None) -> None:
        if what == "learned" and next(steps) == at:
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
    base, watcher = make_base(), Watching(pressing(at))
    raced = race(job, base=base, workspace=workspace, space=RATES, watcher=watcher)
    assert raced.end == "interrupted"
    assert watcher.steps == at
    assert len(watcher.rungs) == rungs
    assert raced.adapter.name == "zs@1"
    winner = raced.places[0]
    assert winner.configuration.number == number
    assert winner.step == step
    assert raced.adapter.metrics["eval_loss"] == min(item.loss for item in winner.judged)
    assert raced.adapter.metrics["eval_loss"] < raced.adapter.metrics["base_eval_loss"]
    run = RunStore(workspace).get(raced.run.id)
    assert run.status == "interrupted"
    assert not run.resumable
    with pytest.raises(UsageError, match="is a race: it does not go on"):
        resume(run.id, base=base, workspace=workspace)
    others = [place for place in raced.places if place is not winner]
    assert [place.left is not None for place in others] == [True] * 5
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
    real = course_module.evaluate_together
    pressed = False

    def judged(*args: Any, **kwargs: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    press = pressing(at)

    def moment(what: str, learner: Learner | None) -> None:
        nonlocal pressed
        press(what, learner)
        pressed = watcher.steps >= at

    monkeypatch.setattr(course_module, "evaluate_together", judged)
    watcher = Watching(moment)
    raced = race(job, base=make_base(), workspace=workspace, space=RATES, watcher=watcher)
    assert raced.end == "interrupted"
    metrics = raced.adapter.metrics
    if at == 12:  # before the first rung there was no other judgement
        assert metrics["eval_loss"] is None
        assert metrics["best_step"] == 2
        assert raced.places[0].configuration.number == 5
    else:
        assert metrics["eval_loss"] == raced.places[0].rungs[0]
        assert metrics["best_step"] == 3


def test_before_the_first_step_there_is_nothing(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    def moment(what: str, learner: Learner | None) -> None:
        if what == "planned":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"before its best could be kept.*onebase race"):
        race(job, base=make_base(), workspace=workspace, count=2, watcher=Watching(moment))
    assert onebase.AdapterStore(workspace).list() == []
    (run,) = RunStore(workspace).list()
    assert run.status == "interrupted"
    assert not run.resumable


def test_tokens_end_a_race(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    """Count and epochs given, so that nothing smaller can be chosen."""
    limit = Budget(tokens=3000)
    watcher = Watching()
    raced = race(
        job,
        base=make_base(),
        workspace=workspace,
        space=RATES,
        count=6,
        budget=limit,
        watcher=watcher,
    )
    assert raced.end == "out of budget"
    assert watcher.plans[0].learned > 3000
    lines = RunStore(workspace).get(raced.run.id).metrics()
    learned: dict[str, list[int]] = {}  # of every configuration, after each of its steps
    for line in lines:
        if "learning_rate" in line:
            learned.setdefault(line["task"], [0]).append(line["tokens"])
    steps = max(map(len, learned.values()))
    last = sum(one[-1] - one[-2] for one in learned.values() if len(one) == steps)
    assert raced.tokens == sum(one[-1] for one in learned.values())
    assert raced.tokens - last < 3000 <= raced.tokens
    assert raced.places[0].configuration.number == 5
    assert RunStore(workspace).get(raced.run.id).status == "finished"


def test_tokens_choose_a_race_within_them(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    settings = {key: job.set[key] for key in ("batch_size", "held_out")}
    raced = race(
        replace(job, set=settings),
        base=make_base(),
        workspace=workspace,
        budget=Budget(tokens=20_000),
    )
    assert raced.end == "finished"
    assert (raced.plan.count, raced.plan.epochs) == (12, 3)
    assert 15_000 < raced.tokens <= 20_000


def test_time_ends_a_race(
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that runs a second a step."""
    seconds = 0.0

    def moment(what: str, learner: Learner | None) -> None:
        nonlocal seconds
        seconds += what == "learned"

    began = time.monotonic()
    monkeypatch.setattr(budget_module.time, "monotonic", lambda: began + seconds)
    raced = race(
        job,
        base=make_base(),
        workspace=workspace,
        space=RATES,
        count=6,
        budget=Budget(seconds=40),
        watcher=Watching(moment),
    )
    assert raced.end == "out of budget"
    assert seconds == 41  # 18 to the first rung, 15 to the second, then two at a time
    assert raced.places[0].configuration.number == 5
    assert len(raced.places[0].rungs) == 2


def test_a_time_budget_measures_first_and_wastes_nothing(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    settings = {key: job.set[key] for key in ("batch_size", "held_out")}
    watcher = Watching()
    raced = race(
        replace(job, set=settings),
        base=make_base(),
        workspace=workspace,
        budget=Budget(seconds=2),
        watcher=watcher,
    )
    (plan,) = watcher.plans
    assert raced.plan == plan
    assert len(raced.places) == plan.count
    assert raced.run.config["race"]["configurations"] == plan.count
    assert len(raced.run.config["jobs"]) == plan.count
    assert raced.run.config["jobs"][0]["set"]["epochs"] == plan.epochs
    if raced.end == "finished":
        assert raced.tokens == pytest.approx(plan.learned, rel=0.1)
    assert raced.seconds < 3


def test_two_races_with_one_seed_are_one(
    job: onebase.Job, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    found = []
    for turn in range(2):
        torch.manual_seed(turn)
        raced = race(
            job, base=make_base(), workspace=onebase.Workspace(tmp_path / str(turn)), count=6
        )
        found.append((raced.adapter.record["sha256"], raced.ladder))
    assert found[0] == found[1]


def test_bad_rows_are_written_down_once(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    with Path(job.data).open("a", encoding="utf-8") as stream:
        stream.write('{"input": "and this?", "output": ""}\n')
    with pytest.raises(DataError, match="41"):
        race(job, base=make_base(), workspace=workspace, count=2)
    assert not workspace.root.exists()
    raced = race(replace(job, skip_bad=True), base=make_base(), workspace=workspace, count=2)
    assert [file.name for file in raced.run.path.glob("skipped-*")] == ["skipped-zs.jsonl"]


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

    name = {"ladder.json": "write_ladder", "ladder.png": "draw_ladder"}[full]
    monkeypatch.setattr(race_module, name, refused)
    watcher = Watching()
    raced = race(job, base=make_base(), workspace=workspace, space=RATES, count=3, watcher=watcher)
    assert onebase.AdapterStore(workspace).get("zs").name == raced.adapter.name
    assert raced.run.status == "finished"
    assert any("No space left on device" in text for text in watcher.notes)


@pytest.mark.parametrize(
    ("changes", "space", "named"),
    [
        ({"set": {"held_out": 0}}, None, "judged by held-out rows.*--held-out"),
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
    real = Learner.judge

    def judge(self: Learner, loss: float | None) -> bool:
        return real(self, float(next(worse)))

    settings = {**job.set, "patience": 1, "epochs": 8}
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "judge", judge)
        raced = race(replace(job, set=settings), base=make_base(), workspace=workspace, space=RATES)
    # Rungs after 5, 16 and 32 steps of 64; the first epoch beyond them has no better loss.
    assert raced.places[0].step == 40
    assert raced.end == "finished"


def test_settings_given_for_all_hold_for_all(
    job: onebase.Job, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    settings = {**job.set, "rank": 4}
    space = default_space(["lora"], fixed=list(settings))
    raced = race(
        replace(job, set=settings), base=make_base(), workspace=workspace, space=space, count=4
    )
    assert {item["set"]["rank"] for item in raced.run.config["jobs"]} == {4}


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
    raced = race(job, base=base, workspace=workspace, space=space)
    assert raced.places[0].configuration.number == 3
    assert [place.step for place in raced.places] == [32, 16, 8]
    assert base.fingerprint == before
    winner = type(plain_model("llama")).from_pretrained(raced.adapter.path)
    loss = held_out_loss(winner, Learner(job, base))
    assert raced.adapter.metrics["eval_loss"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("rows", [3, 5])
def test_a_race_over_one_or_two_steps(
    rows: int, tmp_path: Path, workspace: onebase.Workspace, make_base: Callable[..., Base]
) -> None:
    settings = {"batch_size": 2, "epochs": 1, "held_out": 0.3}
    job = onebase.Job("zs", write_rows(tmp_path, "a", rows), set=settings)
    raced = race(job, base=make_base(), workspace=workspace, count=3)
    assert raced.end == "finished"
    assert raced.adapter.metrics["eval_loss"] == raced.places[0].rungs[-1]
    assert len(raced.places[0].rungs) == 3


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
        raced = race(
            replace(job, set={**job.set, "trunk": kind}),
            base=make_base(),
            workspace=onebase.Workspace(tmp_path / kind),
            space=space,
            count=4,
        )
        ladders.append(raced)
        if kind == "fp32":
            once = sum(computed)
            texts = sum(len(row) for row in {row.ids for row in raced_rows(job, make_base())})
            assert texts < once <= 2 * texts  # at two depths, a common beginning once
    one, other = ladders
    assert sum(computed) == once  # without a trunk nothing is
    for ours, theirs in zip(one.places, other.places, strict=True):
        assert ours.configuration == theirs.configuration
        assert ours.rungs == pytest.approx(theirs.rungs, abs=1e-4)


def raced_rows(job: onebase.Job, base: Base) -> list[Any]:
    learner = Learner(job, base)
    return [*learner.data.train, *learner.data.held_out]
