"""Reading the rows of a file with their places: JSONL, JSON array, CSV, TSV, Parquet.

A row that can't be read becomes a `BadRow`; a file that can't be read raises `DataError`.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from onebase.data.bad_rows import listed
from onebase.data.encoding import decoded
from onebase.data.example import BadRow
from onebase.data.hub import READABLE, fetch
from onebase.data.json_rows import array_rows, line_rows
from onebase.data.row import Row
from onebase.data.table_rows import delimited_rows, parquet_rows
from onebase.data.utf8_paths import shown_if_not_utf8
from onebase.errors import DataError
from onebase.language import say

# Reads a file from its name, its bytes and an encoding, if one is given.
Reader = Callable[[str, bytes, str | None], Iterator[Row | BadRow]]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAGIC = {b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip/xlsx", b"%PDF": "PDF"}


@dataclass(frozen=True)
class Rows:
    """A file's rows in order, those that could not be read, and the SHA-256 of its bytes."""

    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]
    sha256: str


def read_rows(path: str | Path, *, encoding: str | None = None) -> Rows:
    """Read a local file, or the Hub data set `owner/name` if no such file exists. `encoding` is for
    text that is not UTF-8.

    Raises `DataError` for a file that is missing, empty, in another encoding, cut off or of another
    type, and `UsageError` for an encoding that does not exist.
    """
    return _read(path, _files(path), encoding)


def read_requests(path: Path, *, encoding: str | None = None) -> Rows:
    """Read a local file of requests by its extension; an unknown one is read as JSON lines.

    Raises `DataError` as `read_rows` does, and for the first row that can't be read.
    """
    if path.exists() and not path.is_dir():
        table = _read(path, [path], encoding, other=_json_lines)
    else:
        table = _read(path, _files(path, hub=False), encoding)
    if table.bad:
        raise DataError(
            f"{table.bad[0]}{say('.', '。')}",
            say("Correct that line.", "请修正该行。"),
        )
    return table


def require_readable(path: str | Path, table: Rows) -> None:
    """Raise `DataError` with the reasons if no row could be read."""
    if table.rows:
        return
    shown = listed(table.bad)
    raise DataError(
        say(f"No row of {path} can be read: {shown}.", f"{path} 没有可读取的行：{shown}。"),
        say("Correct them.", "请修正这些行。"),
    )


def _read(
    path: str | Path, files: list[Path], encoding: str | None, other: Reader | None = None
) -> Rows:
    """The rows of these files in order; files with an unknown extension are read by `other`."""
    read: list[Row | BadRow] = []
    digest = hashlib.sha256()
    for file in files:
        data = _bytes(file)
        digest.update(data)
        known = file.suffix.lower() in READABLE
        reader = other if other is not None and not known else _reader(file, data)
        read += reader(str(file), data, encoding)
    if not read:
        raise DataError(
            say(f"{path} has no rows.", f"{path} 没有任何数据行。"),
            say("Add at least a few examples.", "请至少加入几个示例。"),
        )
    return Rows(
        tuple(row for row in read if isinstance(row, Row)),
        tuple(row for row in read if isinstance(row, BadRow)),
        digest.hexdigest(),
    )


def _files(path: str | Path, *, hub: bool = True) -> list[Path]:
    file = Path(path)
    name = str(path)
    if file.is_dir():
        raise DataError(
            say(f"{name} is a folder, not a file.", f"{name} 是文件夹，不是文件。"),
            say(
                f"Give one of its files{_examples_in(file)}.",
                f"请指定其中一个文件{_examples_in(file)}。",
            ),
        )
    if file.exists():
        _require_utf8_name(file)
        return [file]
    local = file.suffix.lower() in READABLE or file.parent.is_dir()
    if hub and _HUB_NAME.fullmatch(name) and not local:
        return fetch(name)
    raise DataError(say(f"There is no file {name}.", f"没有文件 {name}。"), _nearest(file))


def _require_utf8_name(file: Path) -> None:
    """Raise DataError for a path that a run's record could not hold."""
    if shown := shown_if_not_utf8(file):
        raise DataError(
            say(
                f"The path {shown} is not UTF-8, so a run could not record it.",
                f"路径 {shown} 不是 UTF-8，无法写入训练记录。",
            ),
            say("Rename the file or its folder.", "请重命名该文件或其所在目录。"),
        )


def _examples_in(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in READABLE)
    return say(f", such as {names[0]}", f"，例如 {names[0]}") if names else ""


def _nearest(file: Path) -> str:
    if not file.parent.is_dir():
        return say(
            f"The folder {file.parent} does not exist either.", f"文件夹 {file.parent} 也不存在。"
        )
    names = sorted(entry.name for entry in file.parent.iterdir() if entry.is_file())
    near = get_close_matches(file.name, names, n=1)
    if near:
        return say(f"Did you mean {file.parent / near[0]}?", f"是否想用 {file.parent / near[0]}？")
    return say("Check the path.", "请检查路径。")


def _bytes(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as problem:
        raise DataError(
            say(
                f"{file} can't be read: {problem.strerror}.",
                f"无法读取 {file}：{problem.strerror}。",
            ),
            say("Check its permissions.", "请检查文件权限。"),
        ) from problem
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise DataError(
            say(f"{file} is empty.", f"{file} 是空文件。"),
            say("Give a file with rows.", "请提供含有数据的文件。"),
        )
    return data


def _reader(file: Path, data: bytes) -> Reader:
    """The reader for a file's extension. Raises DataError if the content is of another type."""
    extension = file.suffix.lower()
    if extension not in READABLE:
        raise DataError(
            say(f"{file} has an unknown file type.", f"{file} 的类型未知。"),
            say(
                f"Save it as one of {', '.join(READABLE)}.",
                f"请另存为以下类型之一：{', '.join(READABLE)}。",
            ),
        )
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    if (kind == "Parquet") != (extension == ".parquet") or kind not in (None, "Parquet"):
        actual = kind or say("something else", "其他内容")
        raise DataError(
            say(
                f"The content of {file} does not match its extension: it is {actual}.",
                f"{file} 的内容与扩展名不符：实际为 {actual}。",
            ),
            say(
                f"Unpack it, or give it the right extension ({', '.join(READABLE)}).",
                f"请解压，或改为正确的扩展名（{', '.join(READABLE)}）。",
            ),
        )
    return _READERS[extension]


def _json_lines(file: str, data: bytes, encoding: str | None) -> Iterator[Row | BadRow]:
    text = decoded(file, data, encoding)
    is_array = re.match(r"[\s\ufeff]*\[\s*(\{|$)", text)
    return array_rows(file, text) if is_array else line_rows(file, text)


def _json(file: str, data: bytes, encoding: str | None) -> Iterator[Row | BadRow]:
    text = decoded(file, data, encoding)
    # Many `.json` files hold JSON lines; a single object over several lines is not rows.
    is_lines = re.match(r"\s*\{.*\}[ \t\r]*\n\s*\{", text)
    return line_rows(file, text) if is_lines else array_rows(file, text)


def _delimited(delimiter: str) -> Reader:
    return lambda file, data, encoding: delimited_rows(
        file, decoded(file, data, encoding), delimiter
    )


_READERS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".parquet": lambda file, data, _: parquet_rows(file, data),  # its text is always UTF-8
}
