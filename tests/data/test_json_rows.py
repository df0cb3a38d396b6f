"""JSON with repeated keys and common mistakes: each error names the mistake and its remedy."""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from onebase.data.formats import load_dataset
from onebase.data.rows import read_requests, read_rows
from onebase.errors import DataError

Write = Callable[[str, object], Path]


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ('{"input": "q", "output": "first", "output": "second"}', "output"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
        ('{"input": "q", "output": "a", "meta": {"x": {"k": 1, "k": 1}}}', "k"),
        ('{"a\\u0062": 1, "ab": 2}', "ab"),
    ],
)
@pytest.mark.parametrize("form", ["lines", "array", "array over lines"])
def test_a_key_that_stands_twice_is_refused(write: Write, row: str, key: str, form: str) -> None:
    good = '{"input": "q", "output": "a"}'
    text, line = {
        "lines": (f"{good}\n{row}\n{good}", 2),
        "array": (f"[{good},{row},{good}]", 1),
        "array over lines": (f"[\n{good},\n{row},\n{good}\n]", 3),
    }[form]
    table = read_rows(write("a.jsonl", text))
    assert len(table.rows) == 2
    (bad,) = table.bad
    assert (bad.line, bad.column) == (line, key)
    assert "twice" in bad.reason


def test_a_line_that_breaks_off_behind_a_double_key_blames_no_other(write: Write) -> None:
    table = read_rows(write("a.jsonl", '{"a": {"k": 1, "k": 2}, "b": \n{"a": "1"}'))
    assert [row.line for row in table.rows] == [2]
    (bad,) = table.bad
    assert (bad.line, bad.column) == (1, None)
    assert "twice" not in bad.reason


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"a": "1"},', "a comma after the row"),
        ('{"a": "1", }', "a comma before '}'"),
        ('{"a": ["1", ]}', "a comma before ']'"),
        ('{"a": "1"}{"a": "2"}', "two rows on one line"),
        ('{"a": "1"} {"a": "2"}', "two rows on one line"),
        (r'{"a": "C:\Users\me"}', r"a single backslash, as in a Windows path: write it twice"),
        (r'{"a": "50\% off"}', "a single backslash"),
        (r'{"a": "\uZZZZ"}', "a single backslash"),
        ("{'a': '1'}", "json.dumps"),
        ("{“a”: 1}", "json.dumps"),
        ('{"a": None}', "write null in JSON"),
        ('{"a": True}', "write true in JSON"),
        ('{"a": "1"} // note', "not JSON: "),
        ('{"a": // note', "a comment"),
        ('{"a": "one\ttwo"}', "a line break or a tab"),
        ('\ufeff{"a": "1"}', "a byte order mark from joined files"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(write: Write, line: str, words: str) -> None:
    table = read_rows(write("a.jsonl", f'{{"a": "1"}}\n{line}\n'))
    (bad,) = table.bad
    assert bad.line == 2
    assert words in bad.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[\n{"a": "1"},\n]', "a.json:3 is not JSON: .*a comma before ']'"),
        ('[\n{"a": "1"},\n{"a": "C:\\Users"}]', "a.json:3 is not JSON: .*a single backslash"),
        ("[\n{'a': 1}]", "a.json:2 is not JSON: .*json.dumps"),
        ('{"a": "1",}', "is not JSON: .*a comma before '}'"),
        ('{"a": 1, "rows": [{"b": 2}]}', "they may be in 'rows'"),
    ],
)
def test_a_mistake_in_an_array_is_named_too(write: Write, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_rows(write("a.json", text))


def test_objects_without_an_array_are_named_with_a_command_that_works(write: Write) -> None:
    rows = [{"input": f"q{n}", "output": "a"} for n in range(3)]
    path = write("a b.json", "\n".join(json.dumps(row, indent=1) for row in rows))
    with pytest.raises(DataError, match="not in an array") as refused:
        read_rows(path)
    command = refused.value.remedy.split("`")[1]
    assert shlex.split(command)[-3:] == ["a b.json", ">", "NEW_FILE.jsonl"]
    if subprocess.run(["which", "jq"], capture_output=True, check=False).returncode == 0:
        subprocess.run(command, shell=True, check=True)
        assert [row.values for row in read_rows("NEW_FILE.jsonl").rows] == rows


@pytest.mark.parametrize("name", ["r.jsonl", "r.txt", "r", "r.json"])
@pytest.mark.parametrize(
    ("content", "inputs"),
    [
        (
            '{"input": "A\u2028B"}\n{"input": "C\u0085D"}\n{"input": "E\u2029F"}\n',
            ["A\u2028B", "C\u0085D", "E\u2029F"],
        ),
        (
            b'\xef\xbb\xbf{"input": "A"}\r\n\r\n{"input": "B"}\r\n{"input": "C"}',
            ["A", "B", "C"],
        ),
        ('[{"input": "A"}, {"input": "B"},\n{"input": "C"}]', ["A", "B", "C"]),
    ],
)
def test_requests_are_read_as_data_is(
    write: Write, name: str, content: object, inputs: list[str]
) -> None:
    rows = read_requests(write(name, content)).rows
    assert [row.values for row in rows] == [{"input": text} for text in inputs]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"input": "a"}\nplain\n', r"r\.txt:2.*not JSON"),
        ('{"input": "a", "input": "b"}\n', r"r\.txt:1.*'input'.*twice"),
        ('{"input": "a"}\n' + "[" * 200_000, r"r\.txt:2.*nested too deep"),
        (b'{"input": "\xff"}\n', r"r\.txt:1 is not UTF-8"),
        ("\n", r"r\.txt is empty"),
    ],
)
def test_a_bad_request_is_named(write: Write, content: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_requests(write("r.txt", content))


def test_requests_are_not_looked_for_on_the_hub(write: Write) -> None:
    with pytest.raises(DataError, match="no file nobody/nothing"):
        read_requests(Path("nobody/nothing"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"a": "1"}\n{}\n{"a": "2"}\n'),
        ("a.json", '[{"a": "1"},\n{},\n{"a": "2"}]'),
        ("a.jsonl", '{"a": "1"}\n { } \n{"a": "2"}\n'),
    ],
)
def test_an_empty_object_is_a_bad_row(write: Write, name: str, text: str) -> None:
    table = read_rows(write(name, text))
    assert [row.line for row in table.rows] == [1, 3]
    assert [str(row) for row in table.bad] == [f"{name}:2: an empty object"]


@pytest.mark.parametrize(("text", "lines"), [("{}\n{}\n", [1, 2]), ("[{}]", [1]), ("{}", [1])])
def test_a_file_of_empty_objects_is_refused_by_row(
    write: Write, text: str, lines: list[int]
) -> None:
    found = load_dataset(write("a.jsonl", text))
    assert found.examples == ()
    assert [str(row) for row in found.bad] == [f"a.jsonl:{line}: an empty object" for line in lines]


@pytest.mark.parametrize("text", ["\u3000\n", "\xa0", "\u2028\n\u0085"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_of_blanks_has_no_rows(write: Write, name: str, text: str) -> None:
    with pytest.raises(DataError, match="has no rows"):
        read_rows(write(name, text))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("marks", ["\ufeff\ufeff", "\ufeff\n\ufeff", "\ufeff \ufeff"])
def test_an_array_behind_two_marks_is_refused_for_them(write: Write, name: str, marks: str) -> None:
    with pytest.raises(DataError, match="a byte order mark from joined files"):
        read_rows(write(name, f'{marks}[\n{{"a": "1"}},\n{{"a": "2"}}\n]'))
