"""The text of a single token in API responses."""

from functools import lru_cache
from typing import Any

from onebase.engine.token_bytes import token_bytes


class TokenText:
    """The texts of a tokenizer's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._bytes = token_bytes(tokenizer)
        self.of = lru_cache(maxsize=1 << 16)(self._of)

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token inside a text."""
        return self._bytes.inside(token)

    def _of(self, token: int) -> str:
        """The token's text; `bytes:\\xe4\\xbd`, as in OpenAI's API, if it is not valid UTF-8."""
        raw = self.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
