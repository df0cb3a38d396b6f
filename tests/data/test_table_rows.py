"""Tables written by spreadsheets: other delimiters, trailing blanks, joined files, long fields."""

from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from onebase.data.rows import read_rows
from onebase.errors import DataError

Write = Callable[[str, object], Path]
OUTSIDE = f"<value out of range: {2**52}000>"  # as pyarrow writes it, in ms as Parquet holds it


def values(write: Write, text: object, name: str = "a.csv") -> list[list[object]]:
    return [list(row.values.values()) for row in read_rows(write(name, text)).rows]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("name", "text", "first"),
    [
        ("a.csv", "text\tlabel\nA, b\tx\nC\ty\n", ["A, b", "x"]),
        ("a.csv", "sep=;\ntext;label\nA, b;x\nC;y\n", ["A, b", "x"]),
        ("a.csv", '"sep=\t"\ntext\tlabel\nA\tx\nC\ty\n', ["A", "x"]),
        ("a.csv", "question, as asked;answer\nA;x\nC;y\n", ["A", "x"]),
        ("a.csv", '"text";"label, final"\n"A;1";"x"\nC;y\n', ["A;1", "x"]),
        ("a.csv", "text;label\nA, b;x, y\nC;y\n", ["A, b", "x, y"]),
        ("a.csv", "text,label;more\nA;1,x;2\nC,y\n", ["A;1", "x;2"]),
        ("a.tsv", "text,label\nA,x\nC,y\n", ["A", "x"]),
        ("a.csv", "text\nA; b\nC\n", ["A; b"]),
    ],
)
def test_the_delimiter_is_told_by_the_rows(
    write: Write, name: str, text: str, first: list[str], end: str
) -> None:
    found = values(write, text.replace("\n", end), name)
    assert found == [first, ["C", "y"][: len(first)]]


def test_lines_are_counted_behind_a_separator_line(write: Write) -> None:
    table = read_rows(write("a.csv", 'sep=;\r\ntext;label\r\n"A\r\nB";x\r\nC\r\nD;y\r\n'))
    assert [row.line for row in table.rows] == [3, 6]
    assert [row.line for row in table.bad] == [5]


@pytest.mark.parametrize(
    "text",
    [
        "text,label,,\nA,x,,\nB,y,,\n,,,\n,,,\n",
        "text,label\nA,x\nB,y\n,\n,\n",
        "text,label\nA,x,\nB,y,,,\n , \n",
        "text,label\n\nA,x\n\n,\nB,y\n\n",
    ],
)
def test_blank_columns_and_rows_are_passed_over(write: Write, text: str) -> None:
    table = read_rows(write("a.csv", text))
    assert [row.values for row in table.rows] == [
        {"text": "A", "label": "x"},
        {"text": "B", "label": "y"},
    ]
    assert not table.bad


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("text,label\nA,x\ntext,label\nB,y\n", 3),
        ("text,label\r\nA,x\r\n\ufefftext,label\r\nB,y\r\n", 3),
        ("text;label\nA;x\nB;y\ntext;label\n", 4),
        ("text,label,\nA,x,\ntext,label,\nB,y,\n", 3),
        ("text,label\nA,x\nlabel,text\nB,y\n", 3),
        ("text,label\nA,x\nText,LABEL\nB,y\n", 3),
        ('"text","label"\nA,x\n\ufeff"text","label"\nB,y\n', 3),
        ('text,label\n"A\nB",x\nB,y\n Label , text \n', 5),
    ],
)
def test_the_header_again_is_a_bad_row(write: Write, text: str, line: int) -> None:
    table = read_rows(write("a.csv", text))
    assert [list(row.values.values())[-1] for row in table.rows] == ["x", "y"]
    (bad,) = table.bad
    assert bad.line == line
    assert "a repeated header line" in bad.reason


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("length", [131_073, 1_000_000])
def test_a_field_of_any_length_is_read(write: Write, name: str, length: int) -> None:
    comma = "," if name == "a.csv" else "\t"
    ((first, _),) = values(write, f"input{comma}output\n{'x' * length}{comma}a\n", name)
    assert first == "x" * length


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ('x,y\n"say \\"hi\\"","ok"\n', "Quotes inside fields are written as"),
        ('x,y\n"a"b,c\n', "Close every quoted field"),
        ('x,y\n1,2\n3,"4\n', "Close every quoted field"),
    ],
)
def test_a_broken_quote_has_its_own_remedy(write: Write, text: str, remedy: str) -> None:
    with pytest.raises(DataError) as error:
        read_rows(write("a.csv", text))
    assert remedy in error.value.remedy


@pytest.mark.parametrize("text", ["x,,y\n1,2,3\n", ",x\n0,1\n", "\n\nx,y\n1,2\n"])
def test_a_header_with_a_hole_is_refused(write: Write, text: str) -> None:
    with pytest.raises(DataError, match="no name for column"):
        read_rows(write("a.csv", text))


@pytest.mark.parametrize("row", ["text,x", "label,label", "Text,text", "A,text"])
def test_a_row_that_names_one_column_is_no_header(write: Write, row: str) -> None:
    assert values(write, f"text,label\nA,x\n{row}\n") == [["A", "x"], row.split(",")]


@pytest.mark.parametrize("header", ['"text","label"', "text,label", 'text,"label"'])
@pytest.mark.parametrize("marks", [1, 2, 3])
def test_marks_before_the_header_are_no_part_of_it(write: Write, header: str, marks: int) -> None:
    text = f"{header}\nA,x\n"
    table = read_rows(write("a.csv", b"\xef\xbb\xbf" * marks + text.encode()))
    assert [row.values for row in table.rows] == [{"text": "A", "label": "x"}]


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (
            pyarrow.array([1, None], pyarrow.timestamp("ns")),
            ["1970-01-01 00:00:00.000000001", None],
        ),
        (
            pyarrow.array([0, 253_402_300_800], pyarrow.timestamp("s")),
            ["1970-01-01 00:00:00.000", "10000-01-01 00:00:00.000"],
        ),
        (pyarrow.array([0, 2**52], pyarrow.timestamp("s")), ["1970-01-01 00:00:00.000", OUTSIDE]),
        (pyarrow.array([1, 3], pyarrow.time64("ns")), ["00:00:00.000000001", "00:00:00.000000003"]),
        (pyarrow.array([1, 2**62], pyarrow.duration("s")), ["1", str(2**62)]),
        (pyarrow.array([0, 1], pyarrow.date32()), ["1970-01-01", "1970-01-02"]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_times_in_parquet_are_read_as_text(
    write: Write, column: pyarrow.Array, texts: list[str | None]
) -> None:
    path = write("a.parquet", b"")
    parquet.write_table(pyarrow.table({"text": ["A", "B"], "time": column}), path)
    assert [row.values["time"] for row in read_rows(path).rows] == texts


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([b"\xff\xfe", b"B"]).cast(pyarrow.binary()).view(pyarrow.string()),
        pyarrow.array([[b"\xca"], [b"B"]]).view(pyarrow.list_(pyarrow.string())),
        pyarrow.array([[2**52], [1]], pyarrow.list_(pyarrow.timestamp("s"))),
    ],
    ids=["text", "a text in a list", "a time in a list"],
)
def test_a_parquet_value_that_python_can_not_hold_is_refused(
    write: Write, column: pyarrow.Array
) -> None:
    path = write("a.parquet", b"")
    parquet.write_table(pyarrow.table({"text": ["A", "B"], "x": column}), path)
    with pytest.raises(DataError, match="can't be read as Parquet"):
        read_rows(path)
