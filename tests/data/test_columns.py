"""`--columns`: names with commas, roles given twice, options quoted for a shell."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from onebase.data.columns import columns_of, columns_option
from onebase.data.formats import load_dataset
from onebase.errors import DataError, UsageError

Write = Callable[[str, object], Path]


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (["input=a,output=b"], {"input": "a", "output": "b"}),
        ([" input = a , output = b ,"], {"input": "a", "output": "b"}),
        (["input=a", "output=b"], {"input": "a", "output": "b"}),
        (
            ["input=question, as asked", "output=a=b"],
            {"input": "question, as asked", "output": "a=b"},
        ),
        (["input=question, as asked,output=b"], {"input": "question, as asked", "output": "b"}),
        (["text=a,label=b, or c"], {"text": "a", "label": "b, or c"}),
    ],
)
def test_options_are_split_where_a_role_follows(
    options: list[str], columns: dict[str, str]
) -> None:
    assert columns_of(options) == columns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["input"], "'input' is not key=value."),
        (["=a"], "'=a' is not key=value."),
        (["input="], "'input=' is not key=value."),
        (["a,b"], "'a,b' is not key=value."),
        (["input=a", "input=b"], "--columns gives the role 'input' or the column 'b' twice."),
    ],
)
def test_other_texts_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        columns_of(options)
    assert refused.value.message == message


@pytest.mark.parametrize(
    "names",
    [
        ("mr", "ref"),
        ("question, as asked", "a=b"),
        ("it's", 'the "answer"'),
        ("问题", "$HOME"),
        (" asked", "answered "),
        ('"asked"', '"C:\\data"'),
        ("asked, output=b", "answered,"),
        ("asked\nhere", "\tanswered"),
    ],
)
def test_a_printed_option_works_when_it_is_pasted(write: Write, names: tuple[str, str]) -> None:
    asked, answer = names
    path = write("a.jsonl", [{asked: "q", answer: "a"}])
    with pytest.raises(DataError) as refused:
        load_dataset(path)
    option = refused.value.remedy.split("`")[1]
    words = shlex.split(option)
    assert words[::2] == ["--columns"] * (len(words) // 2)
    assert len(words) % 2 == 0
    columns = columns_of(words[1::2])
    assert columns == {"input": asked, "output": answer}
    assert columns_of(shlex.split(columns_option(columns))[1::2]) == columns
    assert load_dataset(path, columns=columns).examples[0].answer == "a"


def test_a_misspelt_role_behind_a_comma_is_named(write: Write) -> None:
    path = write("a.jsonl", [{"mr": "q", "ref": "a"}])
    with pytest.raises(UsageError, match=r"'ouput'.*Did you mean 'output'"):
        load_dataset(path, columns=columns_of(["input=mr,ouput=ref"]))


def test_a_name_with_spaces_around_it_is_shown_in_quotes(write: Write) -> None:
    with pytest.raises(DataError, match=r"the columns mr, 'ref ', which"):
        load_dataset(write("a.jsonl", [{"mr": "q", "ref ": "a"}]))


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "input": "here"},
        {"prompt": "q", "system": "Be brief."},
        {"question": "q", "context": "The shop opens at nine."},
        {"instruction": "q", "history": [["a", "b"]], "system": "Be brief."},
    ],
)
def test_questions_without_answers_are_not_taken_for_answers(
    write: Write, row: dict[str, object]
) -> None:
    with pytest.raises(DataError, match="so there are no answers to train on") as refused:
        load_dataset(write("a.jsonl", [row]))
    assert "onebase align ppo" in refused.value.remedy
    assert "--columns" not in refused.value.remedy


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.CSV"])
def test_a_table_without_a_header_is_told(tmp_path: Path, name: str) -> None:
    comma = "," if name.lower() == "a.csv" else "\t"
    path = tmp_path / name
    path.write_text(f"Where is it?{comma}Here.\nWhen?{comma}Now.\n", encoding="utf-8")
    with pytest.raises(DataError) as refused:
        load_dataset(path)
    assert "If line 1 is an example already" in refused.value.remedy


def test_rows_of_json_have_no_header(write: Write) -> None:
    with pytest.raises(DataError) as refused:
        load_dataset(write("a.jsonl", [{"mr": "q", "ref": "a"}]))
    assert "line 1" not in refused.value.remedy
