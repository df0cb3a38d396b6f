import pytest

from onebase.data.example import BadRow, Example, Turn


def test_an_example_gives_its_last_question_and_answer() -> None:
    turns = (
        Turn("system", "Be brief."),
        Turn("user", "Hello"),
        Turn("assistant", "Hi"),
        Turn("user", "Where?"),
        Turn("assistant", "Here."),
    )
    example = Example(turns, "a.jsonl", 3)
    assert example.input == "Where?"
    assert example.answer == "Here."
    assert example.input_key == turns[:4]


def test_a_bad_row_reads_as_place_and_reason() -> None:
    assert str(BadRow("support.jsonl", 17, "answer", "empty")) == (
        "support.jsonl:17, column 'answer': empty"
    )
    assert str(BadRow("support.jsonl", 17, None, "not JSON")) == "support.jsonl:17: not JSON"


def test_a_bad_row_reads_in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert str(BadRow("a.csv", 2, "answer", "为空")) == "a.csv:2，列 'answer'：为空"
