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
    "options", [["input"], ["=a"], ["input="], ["input=a", "input=b"], ["a,b"]]
)
def test_other_texts_are_refused(options: list[str]) -> None:
    with pytest.raises(UsageError):
        columns_of(options)


@pytest.mark.parametrize(
    "names",
    [("mr", "ref"), ("question, as asked", "a=b"), ("it's", 'the "answer"'), ("问题", "$HOME")],
)
def test_a_printed_option_works_when_it_is_pasted(write: Write, names: tuple[str, str]) -> None:
    asked, answer = names
    path = write("a.jsonl", [{asked: "q", answer: "a"}])
    with pytest.raises(DataError) as refused:
        load_dataset(path)
    option = refused.value.remedy.split("`")[1]
    words = shlex.split(option)
    assert words[::2] == ["--columns"] * (len(words) // 2)
    columns = columns_of(words[1::2])
    assert columns == {"input": asked, "output": answer}
    assert columns_of(shlex.split(columns_option(columns))[1::2]) == columns
    assert load_dataset(path, columns=columns).examples[0].answer == "a"


def test_a_misspelt_role_behind_a_comma_is_named(write: Write) -> None:
    path = write("a.jsonl", [{"mr": "q", "ref": "a"}])
    with pytest.raises(UsageError, match=r"'ouput'.*Did you mean 'output'"):
        load_dataset(path, columns=columns_of(["input=mr,ouput=ref"]))
