"""Preference files: kinds, bad rows, and the split into training and held-out rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from onebase.data.example import Turn
from onebase.data.preferences import load_preferences, require_good_rows
from onebase.errors import DataError, UsageError


def write(folder: Path, *rows: Any) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def turns(*texts: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    return [
        {"role": "assistant" if at % 2 else "user", "content": text}
        for at, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("row", "asked", "answers"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ["q"], ("a", "b")),
        (
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            ["q"],
            ("a", "b"),
        ),
        (
            {
                "chosen": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ],
                "rejected": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "b"},
                ],
            },
            ["q"],
            ("a", "b"),
        ),
        (
            {
                "prompt": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "q"},
                ],
                "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
                "rejected": "b",
            },
            ["s", "q"],
            ("a", "b"),
        ),
        (
            {
                "prompt": "q",
                "chosen": [
                    {"role": "user", "content": "q0"},
                    {"role": "assistant", "content": "a0"},
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ],
                "rejected": "b",
            },
            ["q0", "a0", "q"],
            ("a", "b"),
        ),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "chosen": [{"role": "assistant", "content": "a"}],
                "rejected": [{"role": "assistant", "content": "b"}],
            },
            ["q"],
            ("a", "b"),
        ),
    ],
    ids=[
        "prompt",
        "conversations",
        "messages",
        "prompt-messages",
        "prompt-and-conversations",
        "answers-alone",
    ],
)
def test_pairs(row: Any, asked: list[str], answers: tuple[str, str], tmp_path: Path) -> None:
    data = load_preferences(write(tmp_path, row, {**row, "rejected": row["chosen"]}))
    assert data.kind == "pairs"
    assert [turn.content for turn in data.rows[0].prompt] == asked
    assert data.rows[0].answers == answers
    assert data.rows[0].example(1).turns[-1] == Turn("assistant", answers[1])
    (bad,) = data.bad
    assert bad.line == 2
    assert "the same" in bad.reason


def test_ratings_of_answers_and_of_bare_texts(tmp_path: Path) -> None:
    rated = load_preferences(write(tmp_path, {"prompt": "q", "answer": "a", "score": "2.5"}))
    assert rated.kind == "ratings"
    assert not rated.bare
    assert rated.rows[0].rating == 2.5
    bare = load_preferences(
        write(tmp_path, {"text": "fine", "rating": -3}, {"text": "", "rating": 1})
    )
    assert bare.bare
    assert bare.rows[0].prompt == (Turn("user", ""),)
    assert bare.rows[0].answers == ("fine",)
    assert [bad.column for bad in bare.bad] == ["text"]


@pytest.mark.parametrize(
    ("value", "good"),
    [(True, 1.0), ("good", 1.0), (1, 1.0), ("-1", 0.0), (0, 0.0), ("False", 0.0), ("down", 0.0)],
)
def test_judged_answers(value: Any, good: float, tmp_path: Path) -> None:
    data = load_preferences(write(tmp_path, {"prompt": "q", "completion": "a", "label": value}))
    assert data.kind == "judged"
    assert data.rows[0].rating == good


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"prompt": "q", "completion": "a", "label": "so-so"}, "label", "neither good nor bad"),
        ({"prompt": "q", "completion": "a", "label": 0.5}, "label", "neither good nor bad"),
        ({"prompt": ["q"], "completion": "a", "label": 1}, "prompt", "a list, expected text"),
        ({"text": "t", "rating": "many"}, "rating", "not a number"),
        ({"text": "t", "rating": True}, "rating", "not a number"),
        ({"text": "t", "rating": "inf"}, "rating", "not a number"),
        ({"text": "t", "rating": None}, "rating", "null"),
        ({"prompt": 5, "chosen": "a", "rejected": "b"}, "prompt", "a number"),
    ],
)
def test_bad_rows(row: Any, column: str, reason: str, tmp_path: Path) -> None:
    good = {**row, column: 1 if column in ("label", "rating") else "q"}
    data = load_preferences(write(tmp_path, good, row))
    assert len(data.rows) == 1
    (bad,) = data.bad
    assert (bad.line, bad.column) == (2, column)
    assert reason in bad.reason
    with pytest.raises(DataError, match="bad rows: 1"):
        require_good_rows(data)
    with pytest.raises(DataError, match="1 good rows"):
        require_good_rows(data, skip_bad=True)


def test_columns_and_kinds(tmp_path: Path) -> None:
    file = write(tmp_path, {"review": "t", "stars": 3})
    with pytest.raises(DataError, match="review, stars"):
        load_preferences(file)
    data = load_preferences(file, columns={"output": "review", "rating": "stars"})
    assert data.rows[0].rating == 3
    with pytest.raises(UsageError, match="nowhere"):
        load_preferences(file, columns={"output": "nowhere"})
    with pytest.raises(UsageError, match="outptu"):
        load_preferences(file, columns={"outptu": "review"})
    with pytest.raises(DataError, match="not pairs"):
        load_preferences(file, kinds=("pairs",), columns={"output": "review", "rating": "stars"})


def test_no_question_is_on_both_sides(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i % 5}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(20)]
    data = load_preferences(write(tmp_path, *rows))
    train, held = data.split(0.3, 1)
    assert {row.prompt for row in train.rows} & {row.prompt for row in held.rows} == set()
    assert sorted(row.line for row in (*train.rows, *held.rows)) == list(range(1, 21))
    assert len(held.rows) == 8  # .3 of five questions is two, of four rows each
    assert data.split(0.3, 1) == (train, held)
    assert data.split(0.3, 2) != (train, held)


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"chosen": turns("q", "a"), "rejected": turns("x", "b")}, "rejected", "another question"),
        (
            {"chosen": turns("q", "a0", "r", "a"), "rejected": turns("q", "b0", "r", "b")},
            "rejected",
            "another question",
        ),
        (
            {"prompt": "q", "chosen": turns("x", "a"), "rejected": turns("x", "b")},
            "chosen",
            "another question",
        ),
        ({"prompt": "q", "chosen": turns("q"), "rejected": "b"}, "chosen", "does not end"),
        (
            {"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: q\n\nAssistant: b"},
            "chosen",
            "prompt, chosen and rejected",
        ),
        ({"chosen": "a", "rejected": "b"}, "chosen", "answers no question"),
        (
            {"prompt": "q", "chosen": [{**turns("q", "a")[1], "weight": 0}], "rejected": "b"},
            "chosen",
            "masked from the loss",
        ),
        ({"prompt": "q", "chosen": {"role": "user", "content": "a"}, "rejected": "b"}, "chosen",
         "does not end"),
    ],
)  # fmt: skip
def test_answers_that_do_not_answer_the_row_s_question(
    row: Any, column: str, reason: str, tmp_path: Path
) -> None:
    (bad,) = load_preferences(write(tmp_path, row)).bad
    assert bad.column == column
    assert reason in bad.reason


def test_where_every_row_is_bad_none_can_be_skipped(tmp_path: Path) -> None:
    data = load_preferences(write(tmp_path, {"chosen": "a", "rejected": "b"}))
    with pytest.raises(DataError) as refused:
        require_good_rows(data)
    assert "--skip-bad" not in refused.value.remedy
    assert "onebase data check --as preferences" in refused.value.remedy


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "rejected": "c"}', "twice"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b"},', "a comma after the row"),
        ('{"prompt": "C:\\Users", "chosen": "a"', "a single backslash"),
    ],
)
def test_where_no_row_can_be_read_the_reasons_are_named(
    text: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{text}\n" * 3, encoding="utf-8")
    with pytest.raises(DataError, match="can be read") as refused:
        load_preferences(file)
    assert reason in refused.value.message


@pytest.mark.parametrize("messages", ["hello", [], ["hello"], None, {"role": "user"}])
def test_a_judged_chat_must_be_one(messages: object, tmp_path: Path) -> None:
    row = {"messages": messages, "label": True}
    (bad,) = load_preferences(write(tmp_path, row)).bad
    assert str(bad.column).partition("[")[0] == "messages"
