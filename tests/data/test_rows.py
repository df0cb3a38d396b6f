import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from onebase.data.rows import read_rows
from onebase.errors import DataError

Write = Callable[[str, object], Path]
ROWS = [{"input": "a", "output": "b"}, {"input": "c\u2028d", "output": "你好"}]


def values(path: str | Path) -> list[dict[str, object]]:
    return [row.values for row in read_rows(path).rows]


def test_json_lines(write: Write) -> None:
    path = write("a.jsonl", "\n" + "\n\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS))
    table = read_rows(path)
    assert [row.values for row in table.rows] == ROWS
    assert [row.line for row in table.rows] == [2, 4]
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_json_array_places_each_row_by_its_line(write: Write, name: str) -> None:
    table = read_rows(write(name, json.dumps(ROWS, indent=1)))
    assert [row.values for row in table.rows] == ROWS
    assert [row.line for row in table.rows] == [2, 6]


def test_json_lines_named_json(write: Write) -> None:
    path = write("a.json", '{"a": "1"}\r\n{"a": "2"}\r\n')
    assert values(path) == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'input,output\na,"b,\nc"\n\nd,e\n'),
        ("a.csv", 'input; output\r\na;"b,\nc"\r\n\r\nd;e\r\n'),
        ("a.tsv", 'input\toutput\na\t"b,\nc"\n\nd\te\n'),
    ],
)
def test_tables_place_each_row_by_its_first_line(write: Write, name: str, text: str) -> None:
    table = read_rows(write(name, text))
    assert [row.values["input"] for row in table.rows] == ["a", "d"]
    assert str(table.rows[0].values["output"]).replace("\r", "") == "b,\nc"
    assert [row.line for row in table.rows] == [2, 5]


def test_parquet_counts_rows(write: Write) -> None:
    path = write("a.parquet", b"")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert values(path) == ROWS
    assert [row.line for row in read_rows(path).rows] == [1, 2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_is_tolerated(write: Write, name: str) -> None:
    text = "x,y\n1,2\n" if name == "a.csv" else '[{"x": "1", "y": "2"}]'
    assert values(write(name, b"\xef\xbb\xbf" + text.encode())) == [{"x": "1", "y": "2"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": 1', "not JSON: Expecting ',' delimiter at character 8"),
        ("{'a': 1}", "not JSON: Expecting property name enclosed in double quotes at character 2"),
        ("[1, 2]", "an array, not a JSON object"),
        ('"a"', "a string, not a JSON object"),
        ("12", "12, not a JSON object"),
        ("null", "null, not a JSON object"),
        ('{"a": "\t"}', "not JSON: Invalid control character at at character 8"),
        ("[" * 100_000, "unreadable JSON: "),
        ('{"a": ' + "9" * 5000 + "}", "unreadable JSON: "),
    ],
)
def test_a_bad_line_is_a_bad_row(write: Write, line: str, reason: str) -> None:
    table = read_rows(write("a.jsonl", '{"a": "1"}\n' + line + '\n{"a": "2"}\n'))
    assert [row.line for row in table.rows] == [1, 3]
    (bad,) = table.bad
    assert (bad.file, bad.line, bad.column) == ("a.jsonl", 2, None)
    assert bad.reason.startswith(reason)


def test_ragged_rows_are_bad_rows(write: Write) -> None:
    table = read_rows(write("a.csv", "x,y\n1,2\n3\n4,5,6\n"))
    assert [str(row) for row in table.bad] == [
        "a.csv:3: 1 fields, but the header has 2",
        "a.csv:4: 3 fields, but the header has 2",
    ]
    assert len(table.rows) == 1


BROKEN = [
    ("empty.jsonl", "", "empty.jsonl is empty", "Give a file"),
    ("blank.csv", "\ufeff \n\n", "blank.csv is empty", "Give a file"),
    ("gbk.jsonl", '{"a": "1"}\n{"a": "你好"}'.encode("gbk"), "gbk.jsonl:2 is not UTF-8", "gb18030"),
    ("wide.csv", "x,y\n1,2".encode("utf-16-le"), "wide.csv:1 is not UTF-8", "utf-16-le"),
    ("nul.jsonl", b'{"a": "1"}\n{"a": "\x00"}', "nul.jsonl:2 contains a NUL byte", "UTF-8"),
    ("cut.json", '[{"a": "1"},\n {"a": "2', "cut.json is cut off", "again"),
    ("cut.json", '[{"a": "1"},\n {"a": "2"}', "does not end by line 2", "again"),
    ("cut.json", '[{"a": "1"},\n', "cut.json is cut off", "again"),
    ("syntax.json", '[{"a": "1"}\n {"a": "2"}]', "syntax.json:2 is not JSON", "Correct that line"),
    ("syntax.json", '[{"a": "1"},\n {a: "2"}]', "syntax.json:2 is not JSON", "Correct that line"),
    ("deep.json", "[\n" + "[" * 100_000, "deep.json:2 is not JSON", "Correct that line"),
    ("two.json", '[{"a": "1"}]\n[]', "text after the end of the array", "Correct that line"),
    ("object.json", '{"a": 1, "data": []}', "an object, not an array", "may be in 'data'"),
    ("number.json", "3", "a number, not an array", "a JSON array"),
    ("prose.json", "hello", "prose.json is not JSON", "JSON array"),
    ("none.json", "[]", "none.json has no rows", "few examples"),
    ("header.csv", "x,y\n", "header.csv has no rows", "few examples"),
    ("noheader.csv", "\nx,y\n1,2\n", "no name for column 1", "first line"),
    ("index.csv", ",x,y\n0,1,2\n", "no name for column 1", "index=False"),
    ("twice.tsv", "x\ty\tx\n1\t2\t3", "has repeated column names: x", "a different name"),
    ("open.csv", 'x,y\n1,2\n3,"4\n5,6\n', "open.csv:3 can't be read as a table", "quoted field"),
    ("json.csv", '{"a": 1}\n', "json.csv contains JSON", ".jsonl"),
    ("notes.txt", "hello", "notes.txt has an unknown file type", ".jsonl"),
    ("book.csv", b"PK\x03\x04...", "it is zip/xlsx", "extension"),
    ("packed.jsonl", b"\x1f\x8b...", "it is gzip", "Unpack"),
    ("real.jsonl", b"PAR1...", "it is Parquet", "extension"),
    ("false.parquet", "x,y\n1,2", "it is something else", "extension"),
    ("broken.parquet", b"PAR1....PAR1", "broken.parquet can't be read as Parquet", "again"),
]


@pytest.mark.parametrize(
    ("name", "content", "message", "remedy"), BROKEN, ids=[f"{b[0]}-{b[2]}" for b in BROKEN]
)
def test_a_broken_file_is_named_with_a_remedy(
    write: Write, name: str, content: object, message: str, remedy: str
) -> None:
    with pytest.raises(DataError) as error:
        read_rows(write(name, content))
    assert message in error.value.message
    assert name in error.value.message
    assert remedy in error.value.remedy


def test_a_missing_file_names_the_nearest(write: Write) -> None:
    write("support.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no file suport\.jsonl\. Did you mean support\.jsonl\?"):
        read_rows("suport.jsonl")
    with pytest.raises(DataError, match="The folder nowhere does not exist either"):
        read_rows("nowhere/support.jsonl")


def test_a_folder_is_not_a_file(write: Write, tmp_path: Path) -> None:
    write("support.jsonl", ROWS)
    with pytest.raises(DataError, match=r"is a folder.*such as support\.jsonl"):
        read_rows(tmp_path)


def test_a_table_may_not_repeat_a_parquet_column(write: Write) -> None:
    path = write("a.parquet", b"")
    column = pyarrow.array(["1"])
    parquet.write_table(pyarrow.Table.from_arrays([column, column], names=["x", "x"]), path)
    with pytest.raises(DataError, match="has repeated column names: x"):
        read_rows(path)


def test_errors_speak_chinese(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    with pytest.raises(DataError, match=r"a\.jsonl 是空文件"):
        read_rows(write("a.jsonl", ""))
