"""Which steps stand for a training, held against every step that the loop really takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.engine.rows import TokenRow, pack_rows
from onebase.model.base import Base
from onebase.planning.representative_steps import (
    _TYPICAL,
    choose,
    evaluation_tokens,
    packed,
    shared,
)
from onebase.runs.observer import Observer
from onebase.training.batch_sampler import FixedBatches
from onebase.training.job import Job
from onebase.training.job_state import JobState
from onebase.training.loop import train_together

CPU = torch.device("cpu")


@pytest.fixture
def make(tmp_path: Path, make_base: Callable[..., Base]) -> Callable[..., JobState]:
    base = make_base()

    def job_state(
        task: str, count: int, method: str = "prompt-tuning", **settings: Any
    ) -> JobState:
        file = tmp_path / f"{task}.jsonl"
        rows = [
            {"input": f"{task} {'x' * (at % 7)}", "output": "y" * (1 + at)} for at in range(count)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        defaults = {"epochs": 2, "batch_size": 4, "held_out": 0.2}
        return JobState(Job(task, file, method, set=defaults | settings), base)

    return job_state


def drawn(job_state: JobState) -> list[list[TokenRow]]:
    return [next(job_state._batches) for _ in range(job_state.total_steps)]


def test_the_heaviest_step_is_the_first_and_the_next_are_typical(make) -> None:
    job_state = make("a", 30)
    (phase,) = choose([job_state]).phases
    whole = drawn(make("a", 30))
    assert phase.steps == len(whole)
    assert [rows["a"] in whole for rows in phase.chosen] == [True] * (1 + _TYPICAL)
    begin = {"a": shared(job_state.data.train)}
    tokens = [packed(rows, begin) for rows in whole]
    heavy, *typical = (packed(rows["a"], begin) for rows in phase.chosen)
    assert heavy == max(tokens)
    assert phase.heaviest.pass_rows == 4
    mean = sum(tokens) / len(tokens)
    nearest = sorted(abs(item - mean) for item in tokens)
    assert all(abs(item - mean) <= nearest[len(tokens) // 3] for item in typical)


def test_the_tokens_are_those_that_the_loop_packs(make) -> None:
    chosen = choose([make("a", 30), make("b", 12)])
    whole = [drawn(make("a", 30)), drawn(make("b", 12))]
    steps = [
        [rows for batches in whole for rows in batches[at : at + 1]] for at in range(len(whole[0]))
    ]
    ours = sum(phase.tokens for phase in chosen.phases)
    job_states = chosen.states
    contributions = {one.job.task: one.adapter.contribution() for one in job_states}
    virtual = sum(contributions[rows[0].adapter].virtual_tokens for step in steps for rows in step)
    packs = [pack_rows([r for rows in step for r in rows], contributions).pack for step in steps]
    assert sum(len(pack.ids) for pack in packs) - virtual == pytest.approx(
        ours, rel=0.05
    )  # a pack's rows may begin alike for longer


def test_jobs_that_end_apart_are_phases(make) -> None:
    first, second = make("a", 30, epochs=3), make("b", 12)
    both, alone = choose([first, second]).phases
    assert (both.steps, alone.steps) == (second.total_steps, first.total_steps - second.total_steps)
    assert [set(step) for step in both.chosen] == [{"a", "b"}] * 3
    assert [set(step) for step in alone.chosen][-2:] == [{"a"}] * 2
    assert both.heavy == 1


def test_no_more_is_tried_than_there_is(make) -> None:
    (phase,) = choose([make("a", 4, held_out=0, epochs=1)]).phases
    assert (phase.steps, len(phase.chosen)) == (1, 1)
    (phase,) = choose([make("a", 4, held_out=0, epochs=2)]).phases
    assert (phase.steps, len(phase.chosen)) == (2, 2)


def test_micro_batches_are_passes_of_their_own(make) -> None:
    (whole,) = choose([make("a", 30, batch_size=8)]).phases
    (parts,) = choose([make("a", 30, batch_size=2, accumulation=4)]).phases
    assert parts.steps == whole.steps
    assert parts.heaviest.pass_rows == 2
    assert whole.heaviest.pass_rows == 8
    assert parts.heaviest.floats < whole.heaviest.floats / 2


def test_a_short_trial_is_all_that_is_learned(make) -> None:
    job_states = [make("a", 30, epochs=3), make("b", 12)]
    chosen = choose(job_states)
    chosen.apply()
    wanted = [len(phase.chosen) for phase in chosen.phases]
    assert [job_state.total_steps for job_state in job_states] == [sum(wanted), wanted[0]]
    train_together(job_states, Observer())
    assert [job_state.step for job_state in job_states] == [sum(wanted), wanted[0]]
    assert all(job_state.evaluated_step == job_state.step for job_state in job_states)


def test_what_rows_begin_with_counts_once() -> None:
    rows = [TokenRow("a", (1, 2, at, 9), (False,) * 4) for at in (5, 6, 7)]
    assert shared(rows) == 2
    assert packed(rows, {"a": 2}) == 3 * 4 - 2 * 2
    assert packed(rows[:1], {"a": 2}) == 4
    answers = [TokenRow("a", (1, 2, 3, at), (False,) * 3 + (True,)) for at in (5, 6, 7)]
    assert packed([*answers, *rows], {"a": 2}) == 6 * 4 - 5 * 2 - 2 * 1
    assert evaluation_tokens(rows, CPU) == 8
    assert evaluation_tokens([], CPU) == shared([]) == 0


def test_a_given_order_goes_round() -> None:
    batches = [[TokenRow("a", (at,), (False,))] for at in range(3)]
    order = FixedBatches(batches)
    assert order.steps == 3
    assert [next(order) for _ in range(4)] == [*batches, batches[0]]
    other = FixedBatches(batches)
    other.load_state_dict(order.state_dict())
    assert next(other) == batches[1]
