"""Files of requests and of answers to score are read like data files; a field that is not read is reported."""

from pathlib import Path

import pytest

from onebase.cli.label_options import labels_of
from onebase.cli.request_file import read_answers, read_requests
from onebase.data.example import Turn
from onebase.errors import DataError


def write(folder: Path, text: str | bytes, name: str = "r.jsonl") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    "text",
    [
        '{"task": "t", "input": "A\u2028B"}\n{"input": "C\u0085D"}\n{"task": null, "input": "E"}\n',
        b'\xef\xbb\xbf{"task": "t", "input": "A"}\r\n\r\n{"input": "B"}\r\n{"input": "C"}\r\n',
        '[{"task": "t", "input": "A"}, {"input": "B"}, {"input": "C"}]',
    ],
)
def test_requests(tmp_path: Path, text: str | bytes) -> None:
    requests = read_requests(write(tmp_path, text), None)
    assert [task for task, _ in requests] == ["t", "base", "base"]
    assert all(isinstance(prompt, str) for _, prompt in requests)
    assert str(requests[0][1]).startswith("A")


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "utf-16-le"])
def test_files_in_a_given_encoding(tmp_path: Path, encoding: str) -> None:
    request_file = write(tmp_path, '{"input": "Где посылка?"}\n'.encode(encoding))
    assert read_requests(request_file, "t", encoding=encoding) == [("t", "Где посылка?")]
    answer_file = write(tmp_path, '{"text": "Скоро."}\n'.encode(encoding))
    assert read_answers(answer_file, encoding=encoding) == [("", "Скоро.")]


def test_requests_may_have_the_fields_of_data_rows(tmp_path: Path) -> None:
    text = (
        '{"input": "q", "system": "s", "history": [["q0", "a0"]], "context": "c"}\n'
        '{"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"}]}\n'
    )
    (_, first), (_, second) = read_requests(write(tmp_path, text), "t")
    assert [turn.content for turn in first if isinstance(turn, Turn)] == ["s", "q0", "a0", "q\n\nc"]
    assert second == (Turn("system", "s"), Turn("user", "q"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"input": "a"}\n{"task": "t"}\n', r":2, 'input': missing"),
        ('{"input": "a", "input": "b"}\n', r":1.*'input'.*twice"),
        ('{"input": "half \\ud83d"}\n', r":1, 'input': half a character"),
        ('{"input": "a", "task": 5}\n', r":1, 'task': a number"),
        ('{"input": "a"}\n' + "[" * 200_000, r":2.*nested too deep"),
        ('{"input": ' + "[" * 200_000, r":1.*nested too deep"),
        ('{"input": "a", "images": ["x.png"]}\n', r":1, 'images': contains an image"),
        ("plain", r":1.*not JSON"),
    ],
)
def test_a_bad_request_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_requests(write(tmp_path, text), None)


@pytest.mark.parametrize("name", ["max_tokens", "id", "output"])
def test_a_field_that_is_not_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    read_requests(write(tmp_path, f'{{"input": "a", "{name}": 5}}\n'), None)
    assert f"Not read: '{name}'" in capsys.readouterr().err


def test_a_field_that_another_row_reads_is_named_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = '{"messages": [{"role": "user", "content": "q"}], "input": "lost"}'
    read_requests(write(tmp_path, f'{{"input": "a"}}\n{chat}\n'), None)
    assert "Not read: 'input'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'\xef\xbb\xbf{"input": "Do you ship?", "output": "Yes.\xe2\x80\xa8Gladly."}\r\n\r\n',
         [("Do you ship?", "Yes.\u2028Gladly.")]),
        ('{"text": "A\u0085B"}\n', [("", "A\u0085B")]),
        ('{"prompt": "q", "completion": "a"}\n', [("q", "a")]),
        ('{"input": null, "output": "a"}\n{"input": "", "text": "b"}\n', [("", "a"), ("", "b")]),
    ],
)  # fmt: skip
def test_answers(tmp_path: Path, text: str | bytes, found: list[tuple[str, str]]) -> None:
    assert read_answers(write(tmp_path, text)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"output": "a"}\n{"output": \n', r":2.*not JSON"),
        ('{"input": "a"}\n', r":1, 'output': missing"),
        ('{"output": " "}\n', r":1, 'output': empty"),
        ('{"output": "half \\ud83d"}\n', r":1, 'output': half a character"),
        ('{"input": 5, "output": "a"}\n', r":1, 'input': a number"),
        ("[" * 200_000, r"not JSON: .*nested too deep|nested too deep"),
        (b'{"output": "\xff"}\n', r"not UTF-8"),
    ],
)
def test_a_bad_answer_is_named(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_answers(write(tmp_path, text))


KNOWN = ["late, but fine", "never came", "a,b", "a"]


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (["yes, no,"], ["yes", "no"]),
        ([","], []),
        (["late, but fine,never came"], ["late, but fine", "never came"]),
        (["never came, late, but fine"], ["never came", "late, but fine"]),
        (["late, but fine"], ["late, but fine"]),
        (["a,b"], ["a,b"]),
        (["a,c"], ["a", "c"]),
        (['"one, two",three'], ["one, two", "three"]),
        (["one, two", "three"], ["one, two", "three"]),
        (["yes", "no", "yes"], ["yes", "no"]),
        (['say "hi", no'], ['say "hi"', "no"]),
    ],
)
def test_labels(options: list[str], labels: list[str]) -> None:
    assert labels_of(options, KNOWN) == labels
