"""Rows from tables: CSV and TSV, with the column names in the first line, and Parquet."""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from typing import Any

from onebase.data.example import BadRow
from onebase.data.row import Row
from onebase.errors import DataError
from onebase.language import say

_DELIMITERS = (",", ";", "\t", "|")
_BOM = "\ufeff"  # may occur again where files were joined
_SAMPLE = 20  # rows to detect the delimiter from
_SAMPLE_TEXT = 1 << 18
# A first line from which Excel reads the delimiter.
_SEPARATOR = re.compile(r'"?sep=([,;|\t])"?[ \t]*(?:\r\n|\r|\n)', re.IGNORECASE)


def delimited_rows(file: str, text: str, delimiter: str) -> Iterator[Row | BadRow]:
    """Rows under a header line, split at the `delimiter` of the file's type, or at another one that fits
    the first rows better.

    Blank rows are ignored, and so are blank fields after a row's last column. A row with another number
    of fields than the header is bad, and so is a repeated header line.
    """
    if text.lstrip().startswith(("{", "[")):
        raise DataError(
            say(f"{file} contains JSON, not a table.", f"{file} 的内容是 JSON，不是表格。"),
            say("Rename it to .jsonl or .json.", "请将扩展名改为 .jsonl 或 .json。"),
        )
    first, text = 1, text.lstrip(_BOM)
    if separator := _SEPARATOR.match(text):
        delimiter, first = separator[1], 2
        text = text[separator.end() :]
    else:
        delimiter = _delimiter(text, delimiter)
    # The limit is meant for broken files; here a field may have any length.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    line = first
    try:
        for fields in reader:
            if names is None:
                # A blank first line counts as the header, and is refused as such.
                names = _header(file, _without_blank_end([field.strip() for field in fields]))
            elif not any(map(str.strip, fields)):
                pass
            elif len(fields) == len(names) and not _is_header(fields, names):
                yield Row(file, line, dict(zip(names, fields, strict=True)))
            else:
                yield _odd_row(file, line, fields, names)
            line = first + reader.line_num
    except csv.Error as problem:
        raise _no_table(file, line, problem, text) from problem


def _delimiter(text: str, usual: str) -> str:
    """The delimiter that splits most of the first rows like the header; `usual` if several do."""
    counts = {}
    for delimiter in (usual, *_DELIMITERS):
        sizes = _sizes(text, delimiter)
        if sizes[:1] and sizes[0] > 1:
            counts[delimiter] = sum(size == sizes[0] for size in sizes)
    return max(counts, key=lambda delimiter: counts[delimiter], default=usual)


def _sizes(text: str, delimiter: str) -> list[int]:
    """The number of fields of the first rows that are not blank, up to the first unreadable one."""
    sizes = []
    reader = csv.reader(
        io.StringIO(text[:_SAMPLE_TEXT], newline=""), delimiter=delimiter, strict=True
    )
    try:
        for fields in itertools.islice(filter(None, reader), _SAMPLE + 1):
            sizes.append(len(fields))
    except csv.Error:
        pass
    return sizes


def _without_blank_end(fields: list[str]) -> list[str]:
    """`fields` without trailing blank ones."""
    end = len(fields)
    while end > 1 and not fields[end - 1].strip():
        end -= 1
    return fields[:end]


def _is_header(fields: list[str], names: list[str]) -> bool:
    """Whether a row repeats the header, as in joined files: in any order and, if there are several
    columns, in any case.
    """
    first = fields[0].strip(f'{_BOM}" ')  # after the mark a quote is part of the field
    if first.casefold() not in map(str.casefold, names):
        return False  # nearly every row
    names_here = [first, *(field.strip() for field in fields[1:])]
    if len(names) == 1:
        return names_here == names
    return sorted(map(str.casefold, names_here)) == sorted(map(str.casefold, names))


def _odd_row(file: str, line: int, fields: list[str], names: list[str]) -> Row | BadRow:
    """A bad row whose fields do not fit the header; a good one if it only has extra blank fields."""
    if _is_header(_without_blank_end(fields), names):
        reason = say(
            "a repeated header line from joined files: remove it",
            "重复的表头，由文件拼接产生：请删去该行",
        )
        return BadRow(file, line, None, reason)
    if len(fields) >= len(names) and not any(map(str.strip, fields[len(names) :])):
        return Row(file, line, dict(zip(names, fields, strict=False)))
    reason = say(
        f"{len(fields)} fields, but the header has {len(names)}",
        f"有 {len(fields)} 个字段，而表头有 {len(names)} 个",
    )
    return BadRow(file, line, None, reason)


def _no_table(file: str, line: int, problem: csv.Error, text: str) -> DataError:
    if '\\"' in text:
        remedy = say(
            'Quotes inside fields are written as \\"; write them twice (""), as pandas does without '
            "`escapechar`.",
            '该文件把字段内的引号写成 \\"；请改为写两次（""），即 pandas 不带 `escapechar` 的写法。',
        )
    else:
        remedy = say(
            'Close every quoted field, and write quotes inside fields twice ("").',
            '请闭合每个带引号的字段，字段内的引号须写两次（""）。',
        )
    return DataError(
        say(
            f"{file}:{line} can't be read as a table: {problem}.",
            f"{file}:{line} 无法按表格读取：{problem}。",
        ),
        remedy,
    )


def _header(file: str, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1 and name})
    if twice:
        raise DataError(
            say(
                f"{file} has repeated column names: {', '.join(twice)}.",
                f"{file} 中有重复的列名：{'、'.join(twice)}。",
            ),
            say("Give every column a different name.", "请为每一列取不同的名称。"),
        )
    if not names or "" in names:
        column = names.index("") + 1 if names else 1
        raise DataError(
            say(
                f"{file} has no name for column {column}; the first line must be a header.",
                f"{file} 的第 {column} 列没有列名：首行必须是表头。",
            ),
            say(
                "Name every column in the first line (pandas: `to_csv(index=False)`).",
                "请在首行写明每一列的名称（pandas：`to_csv(index=False)`）。",
            ),
        )
    return names


def parquet_rows(file: str, data: bytes) -> Iterator[Row | BadRow]:
    """Rows of a Parquet file; a row's `line` is its number. Dates and times are read as text, since
    Python's types have neither nanoseconds nor the year 10000.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(pyarrow.BufferReader(data))
        names = opened.schema_arrow.names
        columns = opened.read().columns
        temporal = [pyarrow.types.is_temporal(column.type) for column in columns]
        lists = [
            (_time_texts(column) if is_time else column).to_pylist()
            for column, is_time in zip(columns, temporal, strict=True)
        ]
    # Damaged text raises ValueError, an unrepresentable time in a list OverflowError.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as problem:
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise DataError(
            say(
                f"{file} can't be read as Parquet: {reason}.",
                f"{file} 无法按 Parquet 读取：{reason}。",
            ),
            say("Write the file again.", "请重新写出该文件。"),
        ) from problem
    _header(file, names)
    for number, values in enumerate(zip(*lists, strict=True), start=1):
        yield Row(file, number, dict(zip(names, values, strict=True)))


def _time_texts(column: Any) -> Any:
    """Dates and times as text, in UTC if this machine does not know their time zone."""
    import pyarrow

    try:
        return column.cast(pyarrow.string())
    except pyarrow.ArrowInvalid:
        if not pyarrow.types.is_timestamp(column.type) or column.type.tz is None:
            raise
        return column.cast(pyarrow.timestamp(column.type.unit, "UTC")).cast(pyarrow.string())
