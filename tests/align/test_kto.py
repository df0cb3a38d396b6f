"""KTO: where its reference point comes from, and what it can't learn from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.align.conftest import Notes

from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.align import kto
from onebase.align.answers import PromptAnswer
from onebase.align.job import AlignJob
from onebase.align.kto import mismatched, train_kto
from onebase.errors import DataError
from onebase.model.base import Base

A, B, C = (PromptAnswer((prompt,), (prompt + 10, 2)) for prompt in (1, 2, 3))
ALSO_A = PromptAnswer((1,), (21, 2))


def with_answer(one: PromptAnswer, other: PromptAnswer) -> PromptAnswer:
    return PromptAnswer(one.prompt, other.answer)


@pytest.mark.parametrize(
    ("answers", "partners"),
    [
        ([A, B, C], [B, C, A]),
        ([A], [B]),  # a lone row, in a last batch or held out: from elsewhere
        ([B], [A]),
        ([A, ALSO_A], [B, B]),  # of one prompt
        ([A, ALSO_A, C], [C, C, A]),
        ([A, A, A, B], [B, B, B, A]),
    ],
)
def test_the_reference_point_is_of_answers_to_other_prompts(
    answers: list[PromptAnswer], partners: list[PromptAnswer]
) -> None:
    expected = [with_answer(one, other) for one, other in zip(answers, partners, strict=True)]
    assert mismatched(answers, [A, B]) == expected


def rows(*judgements: bool, prompts: int = 99) -> list[dict[str, Any]]:
    return [
        {"prompt": f"q{at % prompts}", "completion": f"a{at}", "label": label}
        for at, label in enumerate(judgements)
    ]


def job(data: Path, **settings: Any) -> AlignJob:
    own = {"batch_size": 3, "max_tokens": 64, "rank": 2, **settings}
    return AlignJob("desk", data, "lora", template="plain", set=own)


def test_no_row_is_paired_with_itself_in_a_training(
    write: Callable[..., Path],
    make_base: Callable[..., Base],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """11 rows: one is held out, and the last batch of the others has one."""
    seen: list[tuple[Sequence[PromptAnswer], list[PromptAnswer]]] = []

    def spied(
        answers: Sequence[PromptAnswer], elsewhere: Sequence[PromptAnswer]
    ) -> list[PromptAnswer]:
        seen.append((answers, mismatched(answers, elsewhere)))
        return seen[-1][1]

    monkeypatch.setattr(kto, "mismatched", spied)
    data = write("judged.jsonl", rows(*[True, False] * 5, True))
    stored = train_kto(job(data), base=make_base(), workspace=Workspace(tmp_path / "w"))
    assert [len(answers) for answers, _ in seen] == [1, 3, 3, 3, 1, 1]
    for answers, found in seen:
        for one, other in zip(answers, found, strict=True):
            assert (other.prompt, other.answer[:-1]) != (one.prompt, one.answer[:-1])
            assert other.answer != one.answer
    assert stored.metrics["learned"] is True


@pytest.mark.parametrize(
    ("judgements", "word"), [([True] * 8, "good"), ([False] * 8, "bad"), ([True] * 5, "good")]
)
def test_answers_that_are_all_judged_alike_are_told_and_not_promoted(
    judgements: list[bool],
    word: str,
    write: Callable[..., Path],
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    workspace, observer = Workspace(tmp_path / "w"), Notes()
    data = write("alike.jsonl", rows(*judgements))
    stored = train_kto(job(data), base=make_base(), workspace=workspace, observer=observer)
    assert not stored.current
    assert stored.metrics["learned"] is False
    told = [text for text in observer.notes if f"is labelled {word}" in text]
    assert len(told) == 2  # before the first step, and at the end
    assert f"onebase adapters promote desk@1 --workspace {workspace.root}" in told[1]
    assert AdapterStore(workspace).promote("desk@1").current


def test_answers_to_one_prompt_are_refused(
    write: Callable[..., Path], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "w")
    alike = write("alike.jsonl", rows(*[True, False] * 4, prompts=1))
    with pytest.raises(DataError, match="all rows have the same question"):
        train_kto(job(alike), base=make_base(), workspace=workspace)
    named = AlignJob("desk", alike, "lora", held_out=alike, set={"max_tokens": 64})
    with pytest.raises(DataError, match="to the same prompt"):
        train_kto(named, base=make_base(), workspace=workspace)
    assert not workspace.runs.exists()
