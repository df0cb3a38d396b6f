"""Texts that are not UTF-8 are detected, shown in messages, and read with the encoding that the user gives."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from onebase.data.formats import load_dataset
from onebase.data.rows import read_rows
from onebase.errors import DataError, UsageError

Write = Callable[[str, object], Path]
WESTERN = [("Müller kam spät aus Köln", "spät"), ("Ça va très bien, garçon?", "bien")]
TEXTS = {
    "cp1252": WESTERN,
    "cp1250": [("Zażółć gęślą jaźń", "jaźń"), ("Příliš žluťoučký kůň", "kůň")],
    "cp1251": [("Где моя посылка", "доставка"), ("Спасибо за помощь", "спасибо")],
    "koi8-r": [("Где моя посылка", "доставка"), ("Спасибо за помощь", "спасибо")],
    "cp1253": [("Πού είναι το δέμα μου", "δέμα"), ("Ευχαριστώ πολύ", "πολύ")],
    "cp932": [("荷物はどこですか", "配送"), ("ありがとうございます", "感謝")],
    "euc-jp": [("荷物はどこですか", "配送"), ("ありがとうございます", "感謝")],
    "iso-2022-jp": [("荷物はどこですか", "配送"), ("ありがとうございます", "感謝")],
    "big5": [("我的包裹在哪裡", "配送"), ("謝謝您的幫助", "感謝")],
    "gb18030": [("我的包裹在哪里", "配送"), ("谢谢您的帮助", "感谢")],
    "cp949": [("소포가 어디에 있나요", "배송"), ("도와주셔서 감사합니다", "감사")],
    "utf-16-le": [("我的包裹在哪里", "a"), ("Müller kam", "b")],
    "utf-16-be": [("我的包裹在哪里", "a"), ("Müller kam", "b")],
    "utf-32-le": [("我的包裹在哪里", "a"), ("Müller kam", "b")],
}
KINDS = {
    "my file.csv": ("input,output", lambda a, b: f'"{a}",{b}'),
    "a.tsv": ("input\toutput", lambda a, b: f"{a}\t{b}"),
    "a.jsonl": (
        '{"input": "?", "output": "!"}',
        lambda a, b: f'{{"input": "{a}", "output": "{b}"}}',
    ),
}


def written(name: str, encoding: str) -> tuple[bytes, list[tuple[str, str]]]:
    """A file in an encoding, and the pairs that it holds."""
    head, line = KINDS[name]
    pairs = TEXTS[encoding]
    text = "\r\n".join([head, *(line(*pair) for pair in pairs)]) + "\r\n"
    return text.encode(encoding), [("?", "!")] * name.endswith("jsonl") + pairs


def pairs_of(path: str | Path, encoding: str | None = None) -> list[tuple[str, str]]:
    examples = load_dataset(path, encoding=encoding).examples
    return [(example.input, example.answer) for example in examples]


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("encoding", list(TEXTS))
def test_the_printed_remedies_read_the_text(write: Write, encoding: str, name: str) -> None:
    data, pairs = written(name, encoding)
    path = write(name, data)
    with pytest.raises(DataError, match="is not UTF-8") as error:
        read_rows(path)
    shown = re.search(r"--encoding (\S+)", error.value.remedy)
    assert shown
    assert pairs_of(path, shown[1]) == pairs
    command = re.search(r"`(iconv .*)`", error.value.remedy)
    # Where several encodings are as likely, a person chooses before anything is written.
    assert bool(command) == (encoding not in ("cp1252", "cp1250"))
    if command:
        subprocess.run(command[1], shell=True, check=True)
        assert pairs_of(shlex.split(command[1])[-1]) == pairs


@pytest.mark.parametrize(
    ("encoding", "others"), [("cp1252", ["mac-roman"]), ("gb18030", ["cp949"])]
)
def test_where_it_is_unsure_each_candidate_is_shown_by_what_it_reads(
    write: Write, encoding: str, others: list[str]
) -> None:
    texts = {"cp1252": "Ça va très bien", "gb18030": "谢谢,快乐"}
    data = f"input,output\n{texts[encoding]},a\n".encode(encoding)
    with pytest.raises(DataError) as error:
        read_rows(write("a.csv", data))
    for name in (encoding, *others):
        line = data.decode(name).splitlines()[1]
        assert f"{name}: {line!r}" in error.value.message


@pytest.mark.parametrize(
    ("text", "encoding", "as_utf8"), [("谢谢", "gb18030", "лл"), ("谢谢", "gbk", "лл")]
)
def test_a_text_that_two_encodings_read_is_not_guessed(
    write: Write, text: str, encoding: str, as_utf8: str
) -> None:
    path = write("a.csv", f"input,output\n{text},a\n".encode(encoding))
    with pytest.raises(DataError) as error:
        read_rows(path, encoding=encoding)
    assert as_utf8 in error.value.message
    assert text in error.value.message
    command = error.value.remedy.split("`")[1]
    subprocess.run(command, shell=True, check=True)
    assert pairs_of(shlex.split(command)[-1]) == [(text, "a")]


def test_candidates_that_read_alike_are_one(write: Write) -> None:
    with pytest.raises(DataError) as error:
        read_rows(write("a.csv", "input,output\nMüller,a\n".encode("cp1252")))
    assert error.value.message.count("'Müller,a'") == 1
    assert "cp1254" not in error.value.message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", list(KINDS))
def test_a_byte_order_mark_says_enough(write: Write, name: str, encoding: str) -> None:
    text = written(name, "utf-16-le")[0].decode("utf-16-le")
    pairs = written(name, "utf-16-le")[1]
    path = write(name, text.encode(encoding))
    assert pairs_of(path) == pairs
    assert pairs_of(path, "cp1252") == pairs


@pytest.mark.parametrize("given", ["cp1252", "gb18030", "utf-16-le", "big5"])
@pytest.mark.parametrize("text", ["Müller,我的\n", "plain,ASCII\n"])
def test_utf8_is_never_read_as_something_else(write: Write, text: str, given: str) -> None:
    path = write("a.csv", "input,output\n" + text)
    assert pairs_of(path, given) == [tuple(text.strip().split(","))]


@pytest.mark.parametrize("given", ["utf-8", "utf8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("text", ["garçon,ça va\n", "Где,моя посылка\n", "a,Ευχαριστώ\n"])
def test_utf8_by_a_name_of_unicode_s_own_is_utf8(write: Write, text: str, given: str) -> None:
    path = write("a.csv", "input,output\n" + text)
    assert pairs_of(path, given) == [tuple(text.strip().split(","))]


@pytest.mark.parametrize("given", [None, "utf-8"])
@pytest.mark.parametrize("text", ["\x1b$B text,été\n", "\x1b$B,plain\n", "\x1b[1m,bold\n"])
def test_an_escape_alone_is_no_other_encoding(write: Write, text: str, given: str | None) -> None:
    path = write("a.csv", "input,output\n" + text)
    assert pairs_of(path, given) == [tuple(text.strip().split(","))]


@pytest.mark.parametrize("given", ["cp1252", "cp1251", "koi8-r"])
def test_an_encoding_of_one_byte_does_not_garble_utf8_with_a_bad_line(
    write: Write, given: str
) -> None:
    lines = [f"été {n},là-bas\n".encode() for n in range(30)]
    lines[10] = "été,là\n".encode("latin-1")
    path = write("a.csv", b"input,output\n" + b"".join(lines))
    with pytest.raises(DataError, match=r"a\.csv:12 is not UTF-8, but the rest"):
        read_rows(path, encoding=given)


def test_a_file_in_another_encoding_than_the_given_one_names_its_own(write: Write) -> None:
    path = write("a.csv", written("my file.csv", "cp932")[0])
    with pytest.raises(DataError, match=r"is not euc_jp\. It reads as cp932"):
        read_rows(path, encoding="euc-jp")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "é,a\n".encode() * 3 + b"\xe9,a\n",
            "a.csv:5 is not UTF-8, but the rest of the file is",
        ),
        ("é,a\n".encode() * 3 + b"\xc3", "a.csv:5 is cut off in the middle of a character"),
        (
            "我的包裹,谢谢\n".encode("gbk") * 9 + b"\xff,a",
            "a.csv:11 is not gb18030, but the rest",
        ),
        ("소포가,감사\n".encode("cp949") * 9 + b"\xff,a", "a.csv:11 is not cp949, but the rest"),
        ("在哪裡,配送\n".encode("big5") * 9 + b"\xff,a", "a.csv:11 is not big5, but the rest"),
        (b"\x81\xff,\x90\x00", "no other encoding fits the whole file"),
        (b"a\0b,c", "a.csv:2 contains a NUL byte"),
    ],
)
def test_what_no_encoding_reads_as_a_whole_is_said(write: Write, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read_rows(write("a.csv", b"input,output\n" + data))


@pytest.mark.parametrize("name", ["gb-18030-2", "base64", "rot13", "idna", ""])
def test_an_encoding_that_is_none_is_refused(write: Write, name: str) -> None:
    with pytest.raises(UsageError, match="Unknown encoding"):
        read_rows(write("a.csv", "input,output\na,b\n"), encoding=name)


@pytest.mark.parametrize("name", ["Shift-JIS", "SHIFT_JIS", "ms932"])
def test_an_encoding_has_many_names(write: Write, name: str) -> None:
    data, pairs = written("my file.csv", "cp932")
    assert pairs_of(write("a.csv", data), name) == pairs
