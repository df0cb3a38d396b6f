"""Log-probabilities in the formats of the chat and completions APIs."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from onebase.engine.request import Token
from onebase.serving.token_text import TokenText

_LOWEST = -9999.0  # JSON has no infinity


def chat_logprobs(tokens: Sequence[Token], texts: TokenText) -> dict[str, Any]:
    """The `logprobs` of a chat choice: every token with its most likely alternatives."""
    content = [
        {
            **_entry(token.id, token.logprob or 0.0, texts),
            "top_logprobs": [_entry(other, logprob, texts) for other, logprob in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(token: int, logprob: float, texts: TokenText) -> dict[str, Any]:
    return {
        "token": texts.of(token),
        "logprob": max(logprob, _LOWEST),
        "bytes": list(texts.bytes_of(token)),
    }


class TextOffsets:
    """The offset of each token in a text, in characters. All tokens of one character have its offset."""

    def __init__(self, texts: TokenText) -> None:
        self._texts = texts
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def of(self, token: int) -> int:
        """The offset of the next token."""
        offset = self._length
        self._length += len(self._decoder.decode(self._texts.bytes_of(token)))
        return offset


def completion_logprobs(
    tokens: Sequence[Token], texts: TokenText, offsets: TextOffsets
) -> dict[str, Any]:
    """The `logprobs` of a completion choice. `offsets` has processed the tokens before these.

    As in OpenAI's API, the likely tokens include the token itself. A token that nothing predicts (the
    first of an echoed prompt) has null.
    """
    return {
        "tokens": [texts.of(token.id) for token in tokens],
        "token_logprobs": [
            None if token.logprob is None else max(token.logprob, _LOWEST) for token in tokens
        ],
        "top_logprobs": [_likely(token, texts) for token in tokens],
        "text_offset": [offsets.of(token.id) for token in tokens],
    }


def _likely(token: Token, texts: TokenText) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    likely = {texts.of(other): max(logprob, _LOWEST) for other, logprob in token.top}
    likely.setdefault(texts.of(token.id), max(token.logprob, _LOWEST))
    return likely
