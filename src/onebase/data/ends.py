"""What ends an answer, from the text that a layout writes after one.

Training learns that text, so generation stops at it. As a rule it is one control token. A layout can
also write plain text there (`### End`), which is then a stop string.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ends:
    """The `tokens` that end an answer, and the `texts` that do, spelt with their control tokens."""

    tokens: frozenset[int]
    texts: tuple[str, ...]


def ends_of(tokenizer: Any, ending: str) -> Ends:
    """The ends of a layout that writes `ending` after an answer, and the tokenizer's own end.

    What follows the first control token of an ending is never reached. White space alone is not an end:
    an answer may have lines.
    """
    tokens = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    token = ending_token(tokenizer, ending)
    if token is None:
        return Ends(frozenset(tokens), (ending.rstrip(),) if ending.strip() else ())
    before, text, id_ = token
    return Ends(frozenset(tokens | {id_}), (before + text,) if before else ())


def ending_token(tokenizer: Any, ending: str) -> tuple[str, str, int] | None:
    """The first control token in `ending`: what stands before it, its text and its id.

    An added token that is not special (a tokenizer can have `</b>`) ends only what begins with it.
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
    """The special tokens by what is written for them."""
    return {text: id_ for text, id_, special in _added(tokenizer) if special}


def _added(tokenizer: Any) -> list[tuple[str, int, bool]]:
    """The tokens that a text is cut at before it is tokenised: their text, id, whether special."""
    added = tokenizer.added_tokens_decoder.items()
    return [(token.content, id_, bool(token.special)) for id_, token in added if token.content]


def hidden_tokens(tokenizer: Any, written: str, ends: Ends) -> frozenset[int]:
    """The control tokens that an answer is shown without: its ends, those that begin, end and fill
    texts, and the special ones in what a layout has `written`.
    """
    own = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    own |= set(getattr(tokenizer, "prefix_tokens", ()))  # ChatGLM begins with two tokens
    by_layout = {id_ for text, id_ in special_tokens(tokenizer).items() if text in written}
    return ends.tokens | by_layout | {id_ for id_ in own if id_ is not None}
