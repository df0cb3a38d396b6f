"""Decoding text files: UTF-8, the encoding of a byte order mark, or the one that the user gives.

A file in another encoding is refused with the likely encodings and a sample of the text in each.
"""

import codecs
import os
import shlex
from difflib import get_close_matches

from onebase.data.encoding_detection import (
    ESCAPES,
    ICONV,
    Candidate,
    likely,
    mostly,
    nearly,
    samples,
)
from onebase.errors import DataError, UsageError
from onebase.language import say

# Longer marks first: UTF-16's mark is the beginning of UTF-32's.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SEVEN_BIT = ("utf-7", "hz")
# Python's codecs for domain names and source code, not for files.
_NOT_FOR_FILES = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined")


def decoded(file: str, data: bytes, encoding: str | None = None) -> str:
    """The text of a file. `encoding` is for a file that is neither UTF-8 nor has a byte order mark.

    Raises UsageError for an encoding that does not exist, and DataError with the likely encodings for
    a file in another one.
    """
    codec = None if encoding is None else codec_of(encoding)
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    try:
        text = data.decode(_MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as problem:
        # A single-byte encoding would silently misread most of such a file.
        if codec in (None, "utf-8") or (not _is_wide(codec) and mostly(data, "utf-8")):
            raise _not_utf8(file, data, problem) from problem
    else:
        if mark or not _is_other(data, text, codec):
            if codec is not None and not mark:
                _require_one_reading(file, data, text, codec)
            return _without_nul(file, text)
    if codec in (None, "utf-8"):
        raise _other(file, _line(data, _odd_byte(data)), likely(data))
    assert codec is not None
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as problem:
        raise _other(file, _line(data, problem.start), likely(data), codec) from problem
    return _without_nul(file, text.removeprefix("\ufeff"))


def codec_of(encoding: str) -> str:
    """Python's name of an encoding that the user gives. Raises UsageError."""
    try:
        "a".encode(encoding)  # refuses codecs that are not for text, such as base64
        name = codecs.lookup(encoding).name.replace("utf-8-sig", "utf-8")
    except (LookupError, ValueError):
        name = None
    if name is None or name in _NOT_FOR_FILES:
        near = get_close_matches(encoding, ["utf-8", *ICONV], n=1)
        hint = say(f"Did you mean {near[0]!r}? ", f"是否想用 {near[0]!r}？") if near else ""
        listed = ", ".join(ICONV)
        raise UsageError(
            say(f"Unknown encoding: {encoding!r}.", f"未知的编码：{encoding!r}。"),
            hint + say(f"Give a name such as {listed}.", f"可用的名称例如：{listed}。"),
        )
    return name


def _is_other(data: bytes, text: str, codec: str | None) -> bool:
    """Whether bytes that decode as UTF-8 are in another encoding: UTF-16 without a byte order mark
    contains NULs, and 7-bit encodings contain escapes.
    """
    if codec == "utf-8":
        return b"\0" in data and bool(likely(data))
    if b"\0" in data:
        return codec is not None or bool(likely(data))
    escapes = bool(ESCAPES.search(data)) and (codec is not None or bool(likely(data)))
    return text.isascii() and (escapes or codec in _SEVEN_BIT)


def _is_wide(codec: str) -> bool:
    """Whether an encoding is multi-byte and not a Unicode encoding."""
    return not codec.startswith("utf") and len(b"\xd0\xbb".decode(codec, "replace")) == 1


def _require_one_reading(file: str, data: bytes, text: str, codec: str) -> None:
    """Raise DataError if the bytes are plausible both as UTF-8 and in the given double-byte encoding;
    some Chinese words in GB18030 are valid letters in UTF-8.
    """
    if text.isascii() or max(text) > "\u07ff" or not _is_wide(codec):
        return
    try:
        readings = [Candidate("UTF-8", text), Candidate(codec, data.decode(codec))]
    except UnicodeDecodeError:
        return
    as_utf8, as_given = samples(readings)
    raise DataError(
        say(
            f"{file} may be UTF-8, which reads {as_utf8!r}, or {codec}, which reads {as_given!r}.",
            f"{file} 可能是 UTF-8（读作 {as_utf8!r}），也可能是 {codec}（读作 {as_given!r}）。",
        ),
        say(
            f"If it is UTF-8, omit --encoding. If it is {codec}, convert it: "
            f"`{_conversion(file, codec)}`.",
            f"若是 UTF-8，请去掉 --encoding。若是 {codec}，请转换该文件：`{_conversion(file, codec)}`。",
        ),
    )


def _odd_byte(data: bytes) -> int:
    """The position of the first escape or NUL, which shows that the file is not UTF-8."""
    escape = ESCAPES.search(data)
    return escape.start() if escape else data.index(b"\0")


def _not_utf8(file: str, data: bytes, problem: UnicodeDecodeError) -> DataError:
    if problem.reason == "unexpected end of data" and mostly(data, "utf-8"):
        line = _line(data, problem.start)
        return DataError(
            say(
                f"{file}:{line} is cut off in the middle of a character.",
                f"{file}:{line} 在一个字符的中间被截断。",
            ),
            say("Download or write the file again.", "请重新下载或写出该文件。"),
        )
    candidates = [] if mostly(data, "utf-8") else likely(data)
    broken = nearly(data) if len(candidates) != 1 else None
    if broken is None:
        return _other(file, _line(data, problem.start), candidates)
    name, line = broken
    return DataError(
        say(
            f"{file}:{line} is not {name}, but the rest of the file is.",
            f"{file}:{line} 不是 {name} 编码，而文件的其余部分是。",
        ),
        say("Write that line again", "请重写该行")
        + (
            say(".", "。")
            if name == "UTF-8"
            else say(f", and give --encoding {name}.", f"，并给出 --encoding {name}。")
        ),
    )


def _other(file: str, line: int, candidates: list[Candidate], given: str = "UTF-8") -> DataError:
    """The error for a file that is not in the `given` encoding."""
    candidates = [item for item in candidates if item.name != given]
    if not candidates:
        return DataError(
            say(
                f"{file}:{line} is not {given}, and no other encoding fits the whole file.",
                f"{file}:{line} 不是 {given} 编码，整个文件也不符合其他任何一种编码。",
            ),
            say("Write the file again as UTF-8.", "请用 UTF-8 编码重新写出该文件。"),
        )
    shown = samples(candidates)
    first = candidates[0].name
    command = _conversion(file, first)
    if len(candidates) == 1:
        return DataError(
            say(
                f"{file}:{line} is not {given}. It reads as {first}: {shown[0]!r}.",
                f"{file}:{line} 不是 {given} 编码。按 {first} 读作：{shown[0]!r}。",
            ),
            say(
                f"Give --encoding {first} (in a tasks file: encoding: {first}), or convert the file: "
                f"`{command}`.",
                f"请给出 --encoding {first}（任务文件中写 encoding: {first}），或转换该文件：`{command}`。",
            ),
        )
    listed = "; ".join(
        f"{item.name}: {sample!r}" for item, sample in zip(candidates, shown, strict=True)
    )
    return DataError(
        say(
            f"{file}:{line} is not {given}. It may be: {listed}.",
            f"{file}:{line} 不是 {given} 编码。可能是：{listed}。",
        ),
        say(
            f"Give the one that reads correctly, such as --encoding {first} (in a tasks file: encoding: "
            f"{first}).",
            f"请选择读得通的一种，例如 --encoding {first}（任务文件中写 encoding: {first}）。",
        ),
    )


def _conversion(file: str, encoding: str) -> str:
    """The command that converts the file to UTF-8 into a new file beside it."""
    stem, ending = os.path.splitext(file)
    name = ICONV.get(encoding, encoding.upper())
    return f"iconv -f {name} -t UTF-8 {shlex.quote(file)} > {shlex.quote(f'{stem}-utf8{ending}')}"


def _line(data: bytes, at: int) -> int:
    return data.count(b"\n", 0, at) + 1


def _without_nul(file: str, text: str) -> str:
    if "\0" not in text:
        return text
    line = text.count("\n", 0, text.index("\0")) + 1
    raise DataError(
        say(f"{file}:{line} contains a NUL byte.", f"{file}:{line} 含有 NUL 字节。"),
        say(
            "The file is not text. Save it as UTF-8 text.", "它不是文本文件，请另存为 UTF-8 文本。"
        ),
    )
