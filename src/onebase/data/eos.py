"""The end of an answer: end tokens and stop strings, from the text that a layout writes after one.

That text is in the loss, so generation stops at it. It is usually one control token. A layout can also
write plain text (`### End`), which then is a stop string.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ends:
    """The end `tokens` of an answer, and its stop strings `texts` with their control tokens as text."""

    tokens: frozenset[int]
    texts: tuple[str, ...]


def ends_of(tokenizer: Any, ending: str) -> Ends:
    """The ends for a layout that writes `ending` after an answer, with the tokenizer's end token.

    Text after the first control token of `ending` is never reached. White space alone is not an end,
    since an answer may have several lines.
    """
    tokens = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    token = ending_token(tokenizer, ending)
    if token is None:
        return Ends(frozenset(tokens), (ending.rstrip(),) if ending.strip() else ())
    before, text, id_ = token
    return Ends(frozenset(tokens | {id_}), (before + text,) if before else ())


def ending_token(tokenizer: Any, ending: str) -> tuple[str, str, int] | None:
    """The first control token in `ending`: the text before it, its text and its id.

    An added token that is not special (such as `</b>`) counts only at the beginning of `ending`.
    """
    control = special_tokens(tokenizer)
    if tokenizer.eos_token and tokenizer.eos_token_id is not None:
        control[tokenizer.eos_token] = tokenizer.eos_token_id
    control |= {
        text: id_
        for text, id_, special in _added(tokenizer)
        if not special and text.strip() and ending.lstrip().startswith(text)
    }
    places = [(at, -len(text), text) for text in control if (at := ending.find(text)) >= 0]
    if not places:
        return None
    at, _, text = min(places)
    return ending[:at], text, control[text]


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """The ids of the special tokens by their text."""
    return {text: id_ for text, id_, special in _added(tokenizer) if special}


def _added(tokenizer: Any) -> list[tuple[str, int, bool]]:
    """The added tokens, at which a text is split before tokenization: text, id, whether special."""
    added = tokenizer.added_tokens_decoder.items()
    return [(token.content, id_, bool(token.special)) for id_, token in added if token.content]


def hidden_tokens(tokenizer: Any, written: str, ends: Ends) -> frozenset[int]:
    """The control tokens that are removed from a shown answer: its ends, the BOS, EOS and padding
    tokens, and the special tokens in the text that a layout has `written`.
    """
    general = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    general |= set(getattr(tokenizer, "prefix_tokens", ()))  # ChatGLM begins with two tokens
    by_layout = {id_ for text, id_ in special_tokens(tokenizer).items() if text in written}
    return ends.tokens | by_layout | {id_ for id_ in general if id_ is not None}
