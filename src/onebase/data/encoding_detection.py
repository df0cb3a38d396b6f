"""Likely encodings of a text that is not UTF-8: chardet's guesses, each with the decoded text.

Only a person can tell cp1252 from cp1250, so messages show a sample of each.
"""

import codecs
import re
from dataclasses import dataclass
from itertools import takewhile

# Encodings of data files besides UTF-8, the most common first, with iconv's names.
ICONV = {
    "cp1252": "CP1252",
    "gb18030": "GB18030",
    "cp932": "CP932",
    "big5": "BIG5",
    "cp950": "CP950",
    "big5hkscs": "BIG5-HKSCS",
    "cp949": "CP949",
    "cp1251": "CP1251",
    "cp1250": "CP1250",
    "cp1253": "CP1253",
    "cp1254": "CP1254",
    "cp1255": "CP1255",
    "cp1256": "CP1256",
    "cp1257": "CP1257",
    "cp1258": "CP1258",
    "cp874": "CP874",
    "koi8-r": "KOI8-R",
    "euc-jp": "EUC-JP",
    "iso-2022-jp": "ISO-2022-JP",
    "iso-2022-kr": "ISO-2022-KR",
    "mac-roman": "MACINTOSH",
    "cp850": "CP850",
    "cp437": "CP437",
    "cp866": "CP866",
    "utf-16-le": "UTF-16LE",
    "utf-16-be": "UTF-16BE",
    "utf-32-le": "UTF-32LE",
    "utf-32-be": "UTF-32BE",
}
# Supersets of Big5, by Microsoft and Hong Kong.
_WIDER = {"big5": ("big5", "cp950", "big5hkscs")}
_BY_CODEC = {codecs.lookup(name).name: name for name in ICONV}
_UNICODE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
# ISO-2022-JP and -KR: every byte is ASCII, and escapes switch the character set.
ESCAPES = re.compile(rb"\x1b(?:\$[@B]|\$\)C|\([JI])")
_SEVERAL_BYTES = ("gb18030", "big5", "cp932", "cp949", "euc-jp")
_CERTAIN = 0.2  # chardet's confidence; far above its values for single-byte encodings
_SAMPLE = 1 << 16  # bytes given to chardet
_MOST = 5  # candidates in a message
_SHOWN = 30  # characters of each


@dataclass(frozen=True)
class Candidate:
    """An encoding, and the text of a file decoded with it."""

    name: str
    text: str


def likely(data: bytes) -> list[Candidate]:
    """The possible encodings of a file, the likeliest first; one of those that give the same text."""
    name_of: dict[str, str] = {}
    for name in _guesses(data):
        for wider in _WIDER.get(name, (name,)):
            try:
                text = data.decode(wider)
            except UnicodeDecodeError:
                continue
            name_of.setdefault(text, wider)
            break
    return [Candidate(name, text) for text, name in name_of.items()][:_MOST]


def mostly(data: bytes, codec: str) -> bool:
    """Whether more than half of the non-ASCII lines are valid in an encoding."""
    lines = _beyond_ascii(data)
    return 2 * sum(_decodes(line, codec) for line in lines) > len(lines)


def nearly(data: bytes) -> tuple[str, int] | None:
    """The encoding of all but a few lines, and the number of the first other line; None if there is none."""
    lines = _beyond_ascii(data)
    for name in ("utf-8", *_SEVERAL_BYTES):
        valid = [line for line in lines if _decodes(line, name)]
        if name == "utf-8":
            fits = 2 * len(valid) > len(lines)
        else:
            sure = _confidence(b"\n".join(valid)) if 10 * len(valid) >= 9 * len(lines) - 9 else {}
            fits = max(sure, key=lambda guess: sure[guess], default="") == name
            fits = fits and sure[name] > _CERTAIN / 2
        if fits and len(valid) < len(lines):
            all_lines = data.split(b"\n")
            first = next(at for at, line in enumerate(all_lines, 1) if not _decodes(line, name))
            return name.replace("utf-8", "UTF-8"), first
    return None


def _beyond_ascii(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n") if not line.isascii() or b"\x1b" in line]


def _decodes(text: bytes, codec: str) -> bool:
    try:
        text.decode(codec)
    except UnicodeDecodeError:
        return False
    return True


def _guesses(data: bytes) -> list[str]:
    """The names of possible encodings, the likeliest first."""
    if b"\0" in data:
        return [name for name in _UNICODE if _reads_as(data, name)]
    sure = _confidence(b"\n".join(_beyond_ascii(data)))
    best = max(sure.values(), default=0.0)
    # Few words say little, so keep more of the guesses then.
    near = [name for name in sure if sure[name] >= best * (0.5 if best > _CERTAIN else 0.2)]
    order = list(ICONV)
    # About equally likely guesses are sorted by how common they are.
    return sorted(near, key=lambda name: (sure[name] < 0.6 * best, order.index(name)))


def _confidence(text: bytes) -> dict[str, float]:
    """chardet's confidence in each encoding."""
    import chardet  # late: nearly every file is UTF-8

    if not text:
        return {}
    guesses = chardet.detect_all(
        text[:_SAMPLE],
        ignore_threshold=True,
        include_encodings=[name for name in ICONV if name not in (*_UNICODE, *_WIDER["big5"][1:])],
    )
    sure = {
        _BY_CODEC.get(codecs.lookup(guess["encoding"]).name, ""): guess["confidence"]
        for guess in guesses
        if guess["encoding"] is not None
    }
    sure.pop("", None)
    return sure


def _reads_as(data: bytes, name: str) -> bool:
    """Whether a text is in this variant of UTF-16 or UTF-32; the wrong byte order gives no ASCII."""
    try:
        text = codecs.getincrementaldecoder(name)().decode(data[:_SAMPLE])
    except UnicodeDecodeError:
        return False
    plain = sum(letter.isascii() for letter in text)
    return "\0" not in text and plain > len(text) / 20 and ("\n" in text or text[:1].isascii())


def samples(candidates: list[Candidate]) -> list[str]:
    """A sample of each candidate's text where they differ the most; of a single candidate, at its first
    non-ASCII letter.
    """
    texts = [item.text.split("\n") for item in candidates]
    rows = list(zip(*texts, strict=False))
    non_ascii = [row for row in rows if not all(map(str.isascii, row))]
    row = max(non_ascii[:200] or rows[:1], key=lambda row: len(set(row)))
    single = len(row) == 1

    def is_uninformative(letters: tuple[str, ...]) -> bool:
        return letters[0].isascii() if single else len(set(letters)) == 1

    informative = sum(1 for _ in takewhile(is_uninformative, zip(*row, strict=False)))
    start = max(0, informative - 10) if informative < len(row[0]) else 0
    return [text[start : start + _SHOWN].strip() for text in row]
