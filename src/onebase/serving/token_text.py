"""A single token as the APIs report it: its text, and its bytes where it is no whole character."""

import re
from functools import lru_cache
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's fallback


class TokenText:
    """The texts of a tokenizer's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alphabet = _byte_alphabet() if "Ġ" in tokenizer.get_vocab() else {}
        self._added = {
            number: token.content.encode()
            for number, token in tokenizer.added_tokens_decoder.items()
        }
        self.bytes_of = lru_cache(maxsize=1 << 16)(self._bytes_of)
        self.of = lru_cache(maxsize=1 << 16)(self._of)

    def _of(self, token: int) -> str:
        """The text of a token; `bytes:\\xe4\\xbd` where it is no whole character, as OpenAI has it."""
        raw = self.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _bytes_of(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token]
        written: str = self._tokenizer.convert_ids_to_tokens(token) or ""
        found = _BYTE_TOKEN.fullmatch(written)
        if found:
            return bytes([int(found[1], 16)])
        if self._alphabet and all(letter in self._alphabet for letter in written):
            return bytes(self._alphabet[letter] for letter in written)
        return written.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """The letters by which byte-level tokenizers write bytes (GPT-2's `bytes_to_unicode`)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}
