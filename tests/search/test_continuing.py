"""What a planned race leaves of its budget: who is continued, exactly as alone, and within the limits."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.search.test_race import RATES, Watching, pressing, space_of, weights
from tests.training.test_loop import write_rows

import onebase
from onebase.model.base import Base
from onebase.search import candidate_training as training_module
from onebase.search.budget import Budget
from onebase.search.candidate import candidate_job
from onebase.search.leaderboard import Stop
from onebase.search.race import RaceResult, race
from onebase.search.space import Configuration, Space
from onebase.training.job_state import JobState

EPOCH = 2028  # tokens of the job's 32 rows


def without_epochs(job: onebase.Job) -> onebase.Job:
    return replace(job, set={key: value for key, value in job.set.items() if key != "epochs"})


def lines(result: RaceResult) -> list[tuple[int, int, int | None, Stop | None]]:
    return [
        (entry.configuration.number, entry.step, entry.continued_from, entry.stop)
        for entry in result.entries
    ]


# Six configurations of 32 steps, 8 an epoch: 6 * 3 + 3 * 5 + 2 * 8 + 16 steps.
STEP = EPOCH / 8
RACE = 65 * STEP
# The settings of the candidate that wins at the end, in a race against others.
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"rank": 2, "dropout": 0.2, "learning_rate": 5e-3}),
    ("prompt-tuning", {"virtual_tokens": 4}),
    ("p-tuning", {"virtual_tokens": 4}),
    ("full", {"learning_rate": 1e-3}),
]


def late_winner(
    losses_told: dict[int, list[float]], rung: int, *, again: bool = False, ends: float = 0.1
) -> float:
    """Losses by which 6 is stopped at a `rung`, and is better than all others at its end; 1 wins the
    planned race. Returns the tokens that continuing 6 and those before it takes.
    """
    losses_told[1] = [0.2]
    losses_told[2] = [0.3, 0.5] if rung == 3 else [0.3]
    losses_told[3] = [0.4] if rung == 1 else [1.0]
    at_rungs = {1: 0.5, 2: 0.4, 3: 0.25}[rung]
    losses_told[6] = [*[at_rungs] * (rung + 3 if again else 3), 0.15, ends]
    own = 32 if again else {1: 29, 2: 24, 3: 16}[rung]
    others = {1: 16 + 24, 2: 16, 3: 0}[rung]  # who came further
    return (own + others) * STEP


def six_of(method: str, settings: dict[str, Any]) -> Space:
    rates = (number / 1e4 for number in range(1, 6))
    return space_of(*[("ia3", {"learning_rate": rate}) for rate in rates], (method, settings))


@pytest.mark.parametrize("rung", [1, 2, 3])
@pytest.mark.parametrize(("method", "settings"), METHODS, ids=[name for name, _ in METHODS])
def test_a_continued_candidate_is_what_it_would_be_alone(
    method: str,
    settings: dict[str, Any],
    rung: int,
    losses_told: dict[int, list[float]],
    job: onebase.Job,
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    """Whichever rung it was stopped at. Full fine-tuning, whose model is not kept, begins again."""
    base, space = make_base(), six_of(method, settings)
    left = late_winner(losses_told, rung, again=method == "full")
    limit = Budget(tokens=round(RACE + left + STEP))
    result = race(
        job,
        base=base,
        workspace=onebase.Workspace(tmp_path / "w"),
        space=space,
        count=6,
        budget=limit,
    )
    assert result.end == "finished"
    assert lines(result)[0] == (6, 32, rung, None)
    assert (1, 32, None, Stop(4, "outdone")) in lines(result)
    assert result.adapter.metrics["eval_loss"] == 0.1
    repeated = {1: 3, 2: 8, 3: 16}[rung] if method == "full" else 0
    counted = sum(entry.tokens for entry in result.entries) + repeated * STEP
    assert result.tokens == pytest.approx(counted, abs=0.1 * STEP * repeated)
    assert result.tokens <= limit.tokens
    losses_told[6] = [0.4, 0.3, 0.2, 0.1]
    alone = candidate_job(job, space.configurations[5], 4)
    (trained,) = onebase.train([alone], base=base, workspace=onebase.Workspace(tmp_path / "s"))
    file = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    expected, found = load_file(trained.path / file), load_file(result.adapter.path / file)
    assert expected.keys() == found.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=3e-6)


def test_the_best_looking_goes_first_and_what_does_not_fit_is_left(
    losses_told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    """Of two that reached the second rung, the better; then nothing fits."""
    losses_told |= {1: [0.2], 2: [0.3, 0.35], 3: [0.35, 0.36], 4: [0.5], 5: [0.45]}
    observer = Watching()
    result = race(
        job,
        base=make_base(),
        workspace=workspace,
        space=RATES,
        count=6,
        budget=Budget(tokens=round(RACE + (16 + 24 + 20) * STEP)),
        observer=observer,
    )
    assert lines(result)[:4] == [
        (1, 32, None, None),
        (2, 32, 3, Stop(4, "outdone")),
        (3, 32, 2, Stop(4, "outdone")),
        (5, 3, None, Stop(1, "pruned")),
    ]
    assert [text.split(":")[-1].split(" (")[0].strip() for text in observer.notes[::2]] == [
        "2",
        "3",
    ]
    assert "stopped at 1/2, continues" in observer.notes[0]
    assert "does not end better" in observer.notes[1]
    assert result.adapter.metrics["race"]["continued"] == 2


@pytest.mark.parametrize(("count", "epochs"), [(6, 4), (6, None), (None, None)])
@pytest.mark.parametrize("tokens", [17_000, 26_000, 37_000])
def test_most_of_the_tokens_are_used_and_never_more(
    tokens: int,
    count: int | None,
    epochs: int | None,
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    result = race(
        job if epochs else without_epochs(job),
        base=make_base(),
        workspace=workspace,
        space=RATES if count else None,
        count=count,
        budget=Budget(tokens=tokens),
    )
    assert result.end == "finished"
    assert 0.85 * tokens <= result.tokens <= tokens
    assert result.budget_used == result.tokens / tokens
    assert result.tokens == sum(entry.tokens for entry in result.entries)


@pytest.mark.parametrize(("rows", "epochs"), [(2, 3), (3, 1), (5, 2), (9, 1)])
@pytest.mark.parametrize("tokens", [200, 600, 1500, 5000])
def test_never_more_tokens_whatever_the_size(
    rows: int,
    epochs: int,
    tokens: int,
    tmp_path: Path,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    settings = {"batch_size": 2, "held_out": 0.3, "epochs": epochs}
    job = onebase.Job("zs", write_rows(tmp_path, "a", rows + 2), set=settings)
    limit = Budget(tokens=tokens)
    if tokens < 250:  # less than the first step of three
        with pytest.raises(onebase.OnebaseError, match="before its first training step"):
            race(job, base=make_base(), workspace=workspace, count=3, budget=limit)
    else:
        result = race(job, base=make_base(), workspace=workspace, count=3, budget=limit)
        assert result.tokens <= tokens


class Clock:
    """A clock that advances by the tokens of every step and evaluation."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr(time, "monotonic", lambda: self.now)
        self._step, self._evaluate = (
            training_module.step_together,
            training_module.evaluate_together,
        )
        patch.setattr(training_module, "step_together", self.step)
        patch.setattr(training_module, "evaluate_together", self.evaluate)

    def step(self, base: Base, group: list[JobState], *rest: Any, **options: Any) -> None:
        seconds = sum(state.coming_tokens for state in group) / 400 + 0.02
        self._step(base, group, *rest, **options)
        self.now += seconds

    def evaluate(self, base: Base, group: list[JobState], *rest: Any, **options: Any) -> None:
        self._evaluate(base, group, *rest, **options)
        self.now += sum(len(row.ids) for state in group for row in state.data.held_out) / 1000


@pytest.mark.parametrize(
    ("seconds", "count", "epochs"), [(75, 6, 4), (120, 6, 4), (90, 6, None), (90, None, None)]
)
def test_most_of_the_time_is_used_and_hardly_more(
    seconds: int,
    count: int | None,
    epochs: int | None,
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, clock = make_base(), Clock(monkeypatch)
    result = race(
        job if epochs else without_epochs(job),
        base=base,
        workspace=workspace,
        space=RATES if count else None,
        count=count,
        budget=Budget(seconds=seconds),
    )
    assert result.end == "finished"
    assert 0.85 * seconds <= clock.now - 1000 <= seconds
    assert result.budget_used == (clock.now - 1000) / seconds


def test_the_deadline_ends_what_is_continued(
    losses_told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes longer than expected: the planned race has its winner, and its end."""
    late_winner(losses_told, 3)
    base, clock = make_base(), Clock(monkeypatch)
    observer = Watching()

    def slower(what: str) -> None:
        if what == "step" and observer.notes:
            clock.now += 3.0

    observer._moment = slower
    result = race(
        job,
        base=base,
        workspace=workspace,
        space=RATES,
        count=6,
        budget=Budget(seconds=70),
        observer=observer,
    )
    assert result.end == "finished"
    assert 1070 <= clock.now < 1075
    winner, second = lines(result)[:2]
    assert winner == (1, 32, None, None)
    assert second[0] == 6
    assert 16 < second[1] < 32
    assert second[2:] == (3, Stop(4, "stopped"))


@pytest.mark.parametrize(("after", "leader"), [(1, 1), (7, 1), (12, 6)])
def test_ctrl_c_while_one_is_continued_leaves_the_best_so_far(
    after: int,
    leader: int,
    losses_told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    """By losses over all held-out rows: once at the end of an epoch it is better, it is stored."""
    left = late_winner(losses_told, 3)
    result = race(
        job,
        base=make_base(),
        workspace=workspace,
        space=RATES,
        count=6,
        budget=Budget(tokens=round(RACE + left + STEP)),
        observer=Watching(pressing(65 + after)),
    )
    assert result.end == "interrupted"
    first, second = lines(result)[:2]
    own = (6, 16 + after, 3)
    if leader == 6:
        assert (first, second) == ((*own, None), (1, 32, None, Stop(4, "outdone")))
        assert result.adapter.metrics["eval_loss"] == 0.1  # its present state was judged too
    else:
        assert (first, second) == ((1, 32, None, None), (*own, Stop(4, "stopped")))
        assert result.adapter.metrics["eval_loss"] == 0.2


def test_a_sample_does_not_beat_what_all_rows_judged(
    losses_told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    """Ctrl-C on the way to the last rung: its old loss is smaller, but was not on all rows."""
    losses_told |= {1: [0.2, 0.2, 0.6], 2: [0.3, 0.3, 0.7], 3: [0.4]}
    result = race(
        job,
        base=make_base(),
        workspace=workspace,
        space=RATES,
        count=6,
        budget=Budget(tokens=round(RACE + (16 + 24 + 1) * STEP)),
        observer=Watching(pressing(65 + 16 + 4)),
    )
    assert result.end == "interrupted"
    assert lines(result)[:3] == [
        (1, 32, None, None),
        (2, 32, 3, Stop(4, "outdone")),
        (3, 12, 2, Stop(3, "stopped")),
    ]


@pytest.mark.parametrize("rung", [1, 2, 3])
def test_a_large_held_out_part_judges_who_is_continued(
    rung: int,
    losses_told: dict[int, list[float]],
    tmp_path: Path,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    """By the same sample as the others, and from the last rung on by all rows."""
    held = write_rows(tmp_path, "held", 90, seed=3)
    settings = {"batch_size": 4, "epochs": 4}
    job = onebase.Job("zs", write_rows(tmp_path, "a", 24), held_out=held, set=settings)
    late_winner(losses_told, rung)
    losses_told[6].insert(3, losses_told[6][0])  # at the last rung twice
    result = race(
        job,
        base=make_base(),
        workspace=workspace,
        space=RATES,
        count=6,
        budget=Budget(tokens=1000 * EPOCH),
    )
    winner = result.entries[0]
    assert (winner.configuration.number, winner.continued_from) == (6, rung)
    assert [item.rows for item in winner.evaluations] == [10, 10, 90, 90, 90]
    assert [item.rung for item in winner.evaluations] == [1, 2, 3, None, None]


def test_who_explodes_while_continued_leaves(
    losses_told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = late_winner(losses_told, 2)
    real = JobState.record_loss

    def troubled(self: JobState, loss: float) -> Any:
        wild = self.step >= 10 and self.job.task.endswith("06")
        return "exploded" if wild else real(self, loss)

    monkeypatch.setattr(JobState, "record_loss", troubled)
    result = race(
        job,
        base=make_base(),
        workspace=workspace,
        space=RATES,
        count=6,
        budget=Budget(tokens=round(RACE + left + STEP)),
    )
    assert result.end == "finished"
    assert lines(result)[0] == (1, 32, None, None)
    assert (6, 10, 2, Stop(3, "exploded")) in lines(result)


THREE = Space(RATES.configurations[:3])
ALL_OF_THREE = 3 * 32 * STEP


@pytest.mark.parametrize("better", [True, False])
def test_where_all_are_at_their_end_the_best_is_trained_for_longer(
    better: bool,
    losses_told: dict[int, list[float]],
    job: onebase.Job,
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seven epochs in place of four fit; an eighth does not. The better of both is stored."""
    monkeypatch.setattr("onebase.search.budget.DEFAULT_EPOCHS", 4)
    monkeypatch.setattr("onebase.search.budget._EPOCHS", (4,))
    losses_told |= {1: [0.3], 2: [0.2], 3: [0.4]}
    losses_told[4] = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1 if better else 0.25]
    base, observer = make_base(), Watching()
    limit = Budget(tokens=round(ALL_OF_THREE + (7 * 8 + 6) * STEP))
    result = race(
        without_epochs(job),
        base=base,
        workspace=onebase.Workspace(tmp_path / "w"),
        space=THREE,
        count=3,
        budget=limit,
        observer=observer,
    )
    assert result.end == "finished"
    assert result.plan.epochs == 4
    assert 0.85 * limit.tokens <= result.tokens <= limit.tokens
    longer = Configuration(4, "ia3", {"learning_rate": 1e-5, "epochs": 7})
    first, second = (entry.configuration for entry in result.entries[:2])
    assert (first, second) == (
        (longer, THREE.configurations[1]) if better else (THREE.configurations[1], longer)
    )
    assert "is trained again, over 7 epochs" in observer.notes[-2]
    assert result.adapter.metrics["race"]["epochs"] == (7 if better else 4)
    jobs = result.run.config["jobs"]
    assert [item["set"]["epochs"] for item in jobs] == [4, 4, 4, 7]
    if better:
        alone = candidate_job(job, replace(longer, number=5), 7)
        losses_told[5] = [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
        (trained,) = onebase.train([alone], base=base, workspace=onebase.Workspace(tmp_path / "s"))
        expected = load_file(trained.path / "adapter_model.safetensors")
        for name, tensor in weights(result).items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=3e-6)


def test_given_epochs_are_kept(
    losses_told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    result = race(
        job,
        base=make_base(),
        workspace=workspace,
        space=THREE,
        count=3,
        budget=Budget(tokens=100_000),
    )
    assert [entry.step for entry in result.entries] == [32] * 3
    assert result.tokens == 3 * 4 * EPOCH


def test_without_a_budget_nobody_is_continued(
    losses_told: dict[int, list[float]],
    job: onebase.Job,
    workspace: onebase.Workspace,
    make_base: Callable[..., Base],
) -> None:
    result = race(job, base=make_base(), workspace=workspace, space=RATES, count=6)
    assert [entry.step for entry in result.entries] == [32, 16, 8, 3, 3, 3]
    assert result.budget_used is None
