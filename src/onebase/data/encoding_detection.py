"""Which encodings a text may be in that is not UTF-8: chardet's guesses, and what each of them reads.

Only a reader can tell cp1252 from cp1250, so a guess comes with a sample.
"""

import codecs
import re
from dataclasses import dataclass
from itertools import takewhile

# What data files are found in beside UTF-8, the commonest first, and what iconv calls it.
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
# Microsoft's and Hong Kong's Big5 have more characters.
_WIDER = {"big5": ("big5", "cp950", "big5hkscs")}
_BY_CODEC = {codecs.lookup(name).name: name for name in ICONV}
_UNICODE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
# Japanese and Korean mail: every byte is ASCII, and escapes switch between alphabets.
ESCAPES = re.compile(rb"\x1b(?:\$[@B]|\$\)C|\([JI])")
_SEVERAL_BYTES = ("gb18030", "big5", "cp932", "cp949", "euc-jp")
_CERTAIN = 0.2  # of chardet's confidence: far above what it has in texts of one byte a letter
_SAMPLE = 1 << 16  # bytes that tell the encoding
_MOST = 5  # candidates that are shown
_SHOWN = 30  # characters of each


@dataclass(frozen=True)
class Candidate:
    """An encoding, and the text of a file as it reads it."""

    name: str
    text: str


def likely(data: bytes) -> list[Candidate]:
    """The encodings that a file may be in, the likeliest first; of those that read it alike one."""
    found: dict[str, str] = {}
    for name in _guesses(data):
        for wider in _WIDER.get(name, (name,)):
            try:
                text = data.decode(wider)
            except UnicodeDecodeError:
                continue
            found.setdefault(text, wider)
            break
    return [Candidate(name, text) for text, name in found.items()][:_MOST]


def mostly(data: bytes, codec: str) -> bool:
    """Whether more than half of the lines beyond ASCII are in an encoding."""
    lines = _beyond_ascii(data)
    return 2 * sum(_decodes(line, codec) for line in lines) > len(lines)


def nearly(data: bytes) -> tuple[str, int] | None:
    """The encoding that all but a few lines are in, and the number of the first that is not."""
    lines = _beyond_ascii(data)
    for name in ("utf-8", *_SEVERAL_BYTES):
        sound = [line for line in lines if _decodes(line, name)]
        if name == "utf-8":
            found = 2 * len(sound) > len(lines)
        else:
            sure = _sure(b"\n".join(sound)) if 10 * len(sound) >= 9 * len(lines) - 9 else {}
            found = max(sure, key=lambda guess: sure[guess], default="") == name
            found = found and sure[name] > _CERTAIN / 2
        if found and len(sound) < len(lines):
            every = data.split(b"\n")
            first = next(at for at, line in enumerate(every, 1) if not _decodes(line, name))
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
    """The names of encodings, the likeliest first."""
    if b"\0" in data:
        return [name for name in _UNICODE if _reads_as(data, name)]
    sure = _sure(b"\n".join(_beyond_ascii(data)))
    best = max(sure.values(), default=0.0)
    # A few words say little: then more of the guesses are worth a look.
    near = [name for name in sure if sure[name] >= best * (0.5 if best > _CERTAIN else 0.2)]
    order = list(ICONV)
    # Guesses that are about as likely are put in the order of how common they are.
    return sorted(near, key=lambda name: (sure[name] < 0.6 * best, order.index(name)))


def _sure(text: bytes) -> dict[str, float]:
    """How sure chardet is of each encoding."""
    import chardet  # late: nearly every file is UTF-8

    if not text:
        return {}
    found = chardet.detect_all(
        text[:_SAMPLE],
        ignore_threshold=True,
        include_encodings=[name for name in ICONV if name not in (*_UNICODE, *_WIDER["big5"][1:])],
    )
    sure = {
        _BY_CODEC.get(codecs.lookup(guess["encoding"]).name, ""): guess["confidence"]
        for guess in found
        if guess["encoding"] is not None
    }
    sure.pop("", None)
    return sure


def _reads_as(data: bytes, name: str) -> bool:
    """Whether UTF-16 or UTF-32 reads a text: the other byte order reads no ASCII, not even lines."""
    try:
        text = codecs.getincrementaldecoder(name)().decode(data[:_SAMPLE])
    except UnicodeDecodeError:
        return False
    plain = sum(letter.isascii() for letter in text)
    return "\0" not in text and plain > len(text) / 20 and ("\n" in text or text[:1].isascii())


def samples(candidates: list[Candidate]) -> list[str]:
    """What each candidate reads where they differ the most; where there is one, at its first letter
    beyond ASCII.
    """
    texts = [item.text.split("\n") for item in candidates]
    rows = list(zip(*texts, strict=False))
    odd = [row for row in rows if not all(map(str.isascii, row))]
    row = max(odd[:200] or rows[:1], key=lambda row: len(set(row)))
    alone = len(row) == 1

    def says_nothing(letters: tuple[str, ...]) -> bool:
        return letters[0].isascii() if alone else len(set(letters)) == 1

    telling = sum(1 for _ in takewhile(says_nothing, zip(*row, strict=False)))
    start = max(0, telling - 10) if telling < len(row[0]) else 0
    return [text[start : start + _SHOWN].strip() for text in row]
