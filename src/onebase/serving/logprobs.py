"""Log-probabilities in the shapes of the two APIs."""

from collections.abc import Sequence
from typing import Any

from onebase.engine.request import Token
from onebase.serving.token_text import TokenText

_LOWEST = -9999.0  # JSON has no infinity


def chat_logprobs(tokens: Sequence[Token], texts: TokenText) -> dict[str, Any]:
    """The `logprobs` of a chat's choice: every token with the likely ones in its place."""
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


def completion_logprobs(
    tokens: Sequence[Token], texts: TokenText, offset: int = 0
) -> dict[str, Any]:
    """The `logprobs` of a completion's choice, whose first token stands at `offset` of its text.

    As in OpenAI's API the likely tokens hold the token itself too. One that nothing predicts (the
    first of an echoed prompt) has null.
    """
    names = [texts.of(token.id) for token in tokens]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(texts.bytes_of(token.id).decode(errors="ignore"))
    return {
        "tokens": names,
        "token_logprobs": [
            None if token.logprob is None else max(token.logprob, _LOWEST) for token in tokens
        ],
        "top_logprobs": [_likely(token, texts) for token in tokens],
        "text_offset": offsets,
    }


def _likely(token: Token, texts: TokenText) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    likely = {texts.of(other): max(logprob, _LOWEST) for other, logprob in token.top}
    likely.setdefault(texts.of(token.id), max(token.logprob, _LOWEST))
    return likely
