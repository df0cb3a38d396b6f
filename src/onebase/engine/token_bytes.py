"""The bytes of each token of a tokenizer.

A token may be part of a character, so answers are assembled from bytes. A token's bytes depend on its
neighbours at the beginning of a text, where many tokenizers drop a space, and for a slow tokenizer on
the previous token.
"""

import codecs
import json
import re
from typing import Any
from weakref import WeakKeyDictionary

_BYTE_TOKEN = re.compile(r"<0x([89A-F][0-9A-F])>")
_instances: WeakKeyDictionary[Any, "TokenBytes"] = WeakKeyDictionary()


def token_bytes(tokenizer: Any) -> "TokenBytes":
    """The TokenBytes of a tokenizer. All callers share one object, which caches."""
    if tokenizer not in _instances:
        _instances[tokenizer] = TokenBytes(tokenizer)
    return _instances[tokenizer]


class TokenBytes:
    """Bytes by token id. An id outside the tokenizer's vocabulary has no bytes.

    `errors` is the codec error handler for invalid UTF-8. For a byte-level tokenizer, each incomplete
    character becomes one U+FFFD; for a tokenizer with byte fallback, each of its bytes does
    (SentencePiece's rule; the tokenizers library would lose the valid characters beside them).
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alphabet = _byte_alphabet() if _is_byte_level(tokenizer) else None
        self._cache: dict[int, bytes] = {}
        self._anchor: int = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
        self.errors = "onebase.each_byte" if self._alphabet is None else "replace"

    def at_start(self, token: int, first: int | None = None) -> bytes:
        """The bytes that `token` adds to a text without characters; `first` is the text's first token."""
        if self._alphabet is not None:
            return self.inside(token)
        return self._added_bytes(token, [] if first is None else [first])

    def inside(self, token: int, before: int | None = None) -> bytes:
        """The bytes that `token` adds to a text after the token `before`; None for an ordinary one."""
        if self._alphabet is None and not self._tokenizer.is_fast:
            context = [self._anchor] if before is None else [self._anchor, before]
            return self._added_bytes(token, context)
        if token not in self._cache:
            self._cache[token] = (
                self._added_bytes(token, [self._anchor])
                if self._alphabet is None
                else self._byte_level(token)
            )
        return self._cache[token]

    def _byte_level(self, token: int) -> bytes:
        """The bytes of a byte-level token: one for each of its letters."""
        assert self._alphabet is not None
        word = self._tokenizer.backend_tokenizer.id_to_token(token) or ""
        try:
            return bytes(self._alphabet[letter] for letter in word)
        except KeyError:  # an added token, which is plain text
            return str(word).encode()

    def _added_bytes(self, token: int, context: list[int]) -> bytes:
        """The bytes that `token` adds when it is decoded after `context`."""
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
    """The byte of each letter in GPT-2's alphabet (Radford et al. 2019): visible Latin-1 characters
    stand for themselves, the other bytes have the letters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in visible]
    letters = {chr(byte): byte for byte in visible}
    return letters | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\N{REPLACEMENT CHARACTER}" * (error.end - error.start), error.end


codecs.register_error("onebase.each_byte", _each_byte)
