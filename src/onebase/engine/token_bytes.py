"""The bytes that each token of a tokenizer stands for.

A token may be a part of a character, so an answer is put together from bytes. What a token adds
depends on its neighbours at the beginning of a text, where many tokenizers drop a space, and with a
slow tokenizer on the token before it.
"""

import codecs
import json
import re
from typing import Any
from weakref import WeakKeyDictionary

_BYTE_TOKEN = re.compile(r"<0x([89A-F][0-9A-F])>")
_made: WeakKeyDictionary[Any, "TokenBytes"] = WeakKeyDictionary()


def token_bytes(tokenizer: Any) -> "TokenBytes":
    """The bytes of a tokenizer's tokens: one object for all who ask, since it remembers."""
    if tokenizer not in _made:
        _made[tokenizer] = TokenBytes(tokenizer)
    return _made[tokenizer]


class TokenBytes:
    """Bytes by token id. A token that the tokenizer does not have stands for nothing.

    `errors` names how bytes that are not valid UTF-8 are read. A byte-level tokenizer gives U+FFFD for each
    part of a character that is broken off, one that falls back to byte tokens for each such byte
    (SentencePiece's rule; the tokenizers library would lose the valid characters beside them).
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alphabet = _byte_alphabet() if _is_byte_level(tokenizer) else None
        self._known: dict[int, bytes] = {}
        self._anchor: int = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
        self.errors = "onebase.each_byte" if self._alphabet is None else "replace"

    def at_start(self, token: int, first: int | None = None) -> bytes:
        """What `token` adds to a text that has no character yet; `first` is its first token."""
        if self._alphabet is not None:
            return self.inside(token)
        return self._added(token, [] if first is None else [first])

    def inside(self, token: int, before: int | None = None) -> bytes:
        """What `token` adds to a text after the token `before`; None for an ordinary one."""
        if self._alphabet is None and not self._tokenizer.is_fast:
            context = [self._anchor] if before is None else [self._anchor, before]
            return self._added(token, context)
        if token not in self._known:
            spelt = self._alphabet is not None
            self._known[token] = self._spelt(token) if spelt else self._added(token, [self._anchor])
        return self._known[token]

    def _spelt(self, token: int) -> bytes:
        """A byte-level token by the letters that it is spelt with, each of which is a byte."""
        assert self._alphabet is not None
        word = self._tokenizer.backend_tokenizer.id_to_token(token) or ""
        try:
            return bytes(self._alphabet[letter] for letter in word)
        except KeyError:  # an added token, spelt as it reads
            return str(word).encode()

    def _added(self, token: int, context: list[int]) -> bytes:
        if token >= len(self._tokenizer):
            return b""
        word = self._tokenizer.convert_ids_to_tokens(token)
        byte = _BYTE_TOKEN.fullmatch(word or "")
        text, before = self._decode([*context, token]), self._decode(context)
        if byte is not None and not text.endswith(word):
            return bytes.fromhex(byte[1])
        return (text.removeprefix(before) if text.startswith(before) else "").encode()

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


def _is_byte_level(tokenizer: Any) -> bool:
    if not tokenizer.is_fast or tokenizer.backend_tokenizer.decoder is None:
        return False
    decoder = json.loads(tokenizer.backend_tokenizer.decoder.__getstate__())
    return any(part["type"] == "ByteLevel" for part in decoder.get("decoders", [decoder]))


def _byte_alphabet() -> dict[str, int]:
    """The letter of each byte: GPT-2's (Radford et al. 2019), where a byte that is no visible
    character of Latin-1 has the next one from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in visible]
    letters = {chr(byte): byte for byte in visible}
    return letters | {chr(0x100 + at): byte for at, byte in enumerate(others)}


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\N{REPLACEMENT CHARACTER}" * (error.end - error.start), error.end


codecs.register_error("onebase.each_byte", _each_byte)
