"""Rows of a table: CSV and TSV, whose first line names the columns, and Parquet."""

import csv
import io
from collections.abc import Iterator

from onebase.data.example import BadRow
from onebase.data.row import Row
from onebase.errors import DataError
from onebase.language import say


def delimited_rows(file: str, text: str, delimiter: str) -> Iterator[Row | BadRow]:
    """Rows under a header line. A row with more or fewer fields than the header is bad."""
    if text.lstrip().startswith(("{", "[")):
        raise DataError(
            say(f"{file} holds JSON, not a table.", f"{file} 的内容是 JSON，不是表格。"),
            say("Rename it to .jsonl or .json.", "请改名为 .jsonl 或 .json。"),
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if names is None:
                # A blank first line stays the header, and is refused as one.
                names = _header(file, [field.strip() for field in fields])
            elif len(fields) == len(names):
                yield Row(file, line, dict(zip(names, fields, strict=True)))
            elif fields:
                reason = say(
                    f"{len(fields)} fields where the header has {len(names)}",
                    f"有 {len(fields)} 个字段，而表头有 {len(names)} 个",
                )
                yield BadRow(file, line, None, reason)
            line = reader.line_num + 1
    except csv.Error as problem:
        raise DataError(
            say(
                f"{file}:{line} can't be read as a table: {problem}.",
                f"{file}:{line} 无法按表格读取：{problem}。",
            ),
            say(
                'Close every quoted field, and write a quote inside one twice ("").',
                '请闭合每个带引号的字段，字段内的引号须写两次（""）。',
            ),
        ) from problem


def _header(file: str, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1 and name})
    if twice:
        raise DataError(
            say(
                f"{file} names a column twice: {', '.join(twice)}.",
                f"{file} 中有重复的列名：{'、'.join(twice)}。",
            ),
            say("Give every column a name of its own.", "请为每一列取不同的名称。"),
        )
    if not names or "" in names:
        column = names.index("") + 1 if names else 1
        raise DataError(
            say(
                f"{file} has no name for column {column}: the first line must be a header.",
                f"{file} 的第 {column} 列没有列名：首行必须是表头。",
            ),
            say(
                "Name every column in the first line (pandas: `to_csv(index=False)`).",
                "请在首行写明每一列的名称（pandas：`to_csv(index=False)`）。",
            ),
        )
    return names


def parquet_rows(file: str, data: bytes) -> Iterator[Row | BadRow]:
    """Rows of a Parquet file; a row's `line` is its number."""
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(pyarrow.BufferReader(data))
        _header(file, opened.schema_arrow.names)
        table = opened.read()
    except (pyarrow.ArrowException, OSError) as problem:
        reason = (str(problem) or type(problem).__name__).splitlines()[0]
        raise DataError(
            say(
                f"{file} can't be read as Parquet: {reason}.",
                f"{file} 无法按 Parquet 读取：{reason}。",
            ),
            say("Write the file again.", "请重新写出该文件。"),
        ) from problem
    for number, values in enumerate(table.to_pylist(), start=1):
        yield Row(file, number, values)
