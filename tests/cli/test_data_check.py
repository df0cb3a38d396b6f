"""`data check` says what became of everything in a file, to people and to programs."""

import json
from pathlib import Path
from typing import Any

import pytest

ROWS: dict[str, dict[str, Any]] = {
    "answers": {
        "instruction": "q",
        "input": "i",
        "output": "a",
        "system": "s",
        "id": 7,
        "note": None,
    },
    "chats": {
        "messages": [
            {"role": "user", "content": "q", "name": "Ann"},
            {"role": "assistant", "content": "a", "weight": 1},
        ],
        "id": 7,
    },
    "pairs": {"prompt": "q", "chosen": "a", "rejected": "b", "system": "s", "id": 7},
}


@pytest.mark.parametrize("name", ["answers", "chats", "pairs"])
def test_every_column_and_field_is_listed(onebase, base: str, desk: Path, name: str) -> None:
    rows = [json.dumps(ROWS[name] | {"id": number}) for number in range(9)]
    (desk / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    check = ("data", "check", "a.jsonl", "--base", base)
    result = onebase(*check, "--json")
    assert result.code == 0, result.err
    fields = result.json["fields"]
    assert fields.keys() >= ROWS[name].keys()
    assert fields["id"] == "unread"
    assert any("'id'" in text for text in result.json["warnings"])
    plain = onebase(*check)
    assert "  id: not read" in plain.out
    assert all(f"\n  {field}: " in plain.out for field in fields)
    assert "  id: 未读取" in onebase(*check, "--lang", "zh").out


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "label": False},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
         "kto_tag": False},
        {"instruction": "q", "input": "i", "output": "a", "label": False},
        {"input": "q", "output": "a", "rating": 1},
    ],
)  # fmt: skip
def test_judged_answers_are_not_trained_on(onebase, base: str, desk: Path, row: Any) -> None:
    (desk / "a.jsonl").write_text(f"{json.dumps(row)}\n" * 9, encoding="utf-8")
    command = "onebase align reward" if "rating" in row else "onebase align kto"
    checked = onebase("data", "check", "a.jsonl", "--base", base, "--json")
    assert checked.json["read_by"] == [command]
    refused = onebase("data", "check", "a.jsonl", "--base", base, "--as", "answers")
    trained = onebase("train", "--task", "t", "--data", "a.jsonl", "--base", base)
    for result in (refused, trained):
        assert result.code == 3
        assert f"{command} --task TASK --data a.jsonl" in result.err
    assert not (desk / "ws" / "adapters").exists()


def test_training_names_the_fields_that_it_does_not_read(onebase, base: str, desk: Path) -> None:
    rows = [{"input": f"q{n}", "output": "a", "tools": [{"name": "w"}]} for n in range(9)]
    (desk / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    flags = ("--task", "t", "--data", "a.jsonl", "--base", base, "--set", "epochs=1")
    result = onebase("train", *flags)
    assert result.code == 0, result.err
    assert "Not read: 'tools'" in result.err


@pytest.mark.parametrize("form", ["one option", "two options", "--column"])
def test_columns_with_commas(onebase, base: str, desk: Path, form: str) -> None:
    row = {"question, as asked": "q", "a=b": "a"}
    (desk / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
    pairs = ["input=question, as asked", "output=a=b"]
    options = ["--columns", ",".join(pairs)]
    if form != "one option":
        name = "--column" if form == "--column" else "--columns"
        options = [word for pair in pairs for word in (name, pair)]
    result = onebase("data", "check", "a.jsonl", "--base", base, *options, "--json")
    assert result.code == 0, result.err
    assert result.json["columns"] == {"input": "question, as asked", "output": "a=b"}


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--labels", "late, but fine", "--labels", "never"), ["late, but fine", "never"]),
        (("--label", "late, but fine"), ["late, but fine"]),
        (("--label", "late, but fine", "--label", "never"), ["late, but fine", "never"]),
        (("--label", "a, b", "--labels", "c,d"), ["a, b", "c", "d"]),
    ],
)
def test_labels_with_commas(onebase, options: tuple[str, ...], expected: list[str]) -> None:
    flags = ("--task", "mood", "--text", "Hi", *options)
    labels = onebase("classify", *flags, "--json").json["labels"]
    assert sorted(item["label"] for item in labels) == expected


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("option", ["--label=", "--labels=,", "--label= "])
def test_label_options_without_a_label_are_refused(onebase, option: str) -> None:
    result = onebase("classify", "--task", "mood", "--text", "Hi", option)
    assert result.code == 2
    assert "contains no labels" in result.err


@pytest.mark.parametrize("text", ["\ud83d", "half \udc00", "a\ud800b"])
def test_half_a_character_is_refused(onebase, base: str, text: str) -> None:
    for words in (
        ("generate", "--prompt", text),
        ("classify", "--task", "base", "--labels", "a,b", "--text", text),
    ):
        result = onebase(*words, "--base", base)
        assert result.code == 2
        assert "half a character" in result.err or "not UTF-8" in result.err


@pytest.mark.parametrize(
    "content",
    ['{"output": "a"}\n{"output": ', '{"input": "a"}', '{"output": "\\ud83d"}', "[" * 200_000],
)
def test_a_broken_score_file_is_bad_data(onebase, base: str, desk: Path, content: str) -> None:
    (desk / "s.jsonl").write_text(content, encoding="utf-8")
    result = onebase("align", "score", "--task", "t", "--file", "s.jsonl", "--base", base)
    assert result.code == 3
    assert "s.jsonl" in result.err


@pytest.mark.parametrize(("twice", "code"), [("rank=8", 2), ("rank=4", 3)])
def test_a_setting_given_twice_is_refused(onebase, base: str, twice: str, code: int) -> None:
    flags = ("--data", "no.jsonl", "--base", base, "--set", "rank=4", "--set", twice)
    result = onebase("train", "--task", "t", *flags)
    assert result.code == code, result.err
    assert ("twice" in result.err) == (code == 2)


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--prompt", "a", "--prompt", "b"),
        ("data", "check", "support.jsonl", "--max-tokens", "9", "--max-tokens", "10"),
        ("align", "dpo", "--task", "t", "--task", "u", "--data", "support.jsonl"),
        ("race", "--methods", "lora", "--methods", "ia3"),
    ],
)
def test_a_single_valued_option_given_twice_is_refused(onebase, words: tuple[str, ...]) -> None:
    result = onebase(*words)
    assert result.code == 2
    assert "is given twice" in result.err
