"""An answer's text from its tokens, one token at a time, with no work that grows with the answer."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from onebase.engine.token_bytes import token_bytes

# Lone surrogates stand for hidden tokens while stops are looked for: no text from bytes has one.
_FIRST_LETTER = 0xD800


class Detokenizer:
    """The visible text of one answer. `hidden` tokens have none, but a stop may name them.

    A character is given out when its last byte is there. Bytes that can't become one come out as
    U+FFFD, as in the tokenizer's own decoding; bytes still unfinished at the end are left off.

    The answer is `stopped` as soon as it contains one of `stops`, and ends before the earliest that
    it contains then. What may be the beginning of one is held back. Spaces before punctuation stay
    (`clean_up_tokenization_spaces` is off): they are the model's answer.
    """

    def __init__(
        self, tokenizer: Any, hidden: frozenset[int] = frozenset(), stops: Iterable[str] = ()
    ) -> None:
        self._bytes = token_bytes(tokenizer)
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")(self._bytes.errors)
        self._first: int | None = None
        self._before: int | None = None
        self._begun = False
        stops = tuple(stops)
        self._stops = _Stops(tokenizer, hidden, stops) if stops else None
        self.stopped = False

    def add(self, token: int) -> str:
        """Take in the next token; returns the text that it makes visible."""
        if self.stopped:
            return ""
        if token in self._hidden:
            new = self._stops.letter(token) if self._stops else ""
        else:
            new = self._decoder.decode(self._read(token))
        if self._stops is None or not new:
            return new
        given = self._stops.add(new)
        self.stopped = self._stops.found
        return given

    def finish(self, end: int | None = None) -> str:
        """What was held back, when the answer ends at the token `end` or without one."""
        if self.stopped or self._stops is None:
            return ""
        given = self.add(end) if end in self._hidden else ""
        return given if self.stopped else given + self._stops.rest()

    def _read(self, token: int) -> bytes:
        if self._begun:
            data = self._bytes.inside(token, self._before)
        else:
            data = self._bytes.at_start(token, self._first)
            self._begun = bool(data)
            if self._first is None:
                self._first = token
        self._before = token
        return data


class _Stops:
    """Looks for stops in a text that comes in parts, and holds back what may be the beginning of one.

    A hidden token that a stop names is one letter in the text, which only that stop can match. The
    other stops are looked for in what is visible.
    """

    def __init__(self, tokenizer: Any, hidden: frozenset[int], stops: Iterable[str]) -> None:
        self._plain = tuple(stops)
        names = {token: tokenizer.convert_ids_to_tokens(token) for token in hidden}
        named = [
            token
            for token, name in names.items()
            if name and any(name in stop for stop in self._plain)
        ]
        self._letters = {token: chr(_FIRST_LETTER + at) for at, token in enumerate(named)}
        self._invisible = frozenset(self._letters.values())
        # The longest name first: one may be a part of another.
        named.sort(key=lambda token: len(names[token]), reverse=True)
        self._naming = []
        for stop in self._plain:
            for token in named:
                stop = stop.replace(names[token], self._letters[token])  # noqa: PLW2901
            if self._invisible & set(stop):
                self._naming.append(stop)
        self._held = ""
        self.found = False

    def letter(self, token: int) -> str:
        """What stands for a hidden token; nothing where no stop names it."""
        return self._letters.get(token, "")

    def add(self, new: str) -> str:
        """Take in what comes next; returns what can be given out."""
        text = self._held + new
        visible = text
        places: Sequence[int] = range(len(text))
        if not self._invisible.isdisjoint(text):
            places = [at for at, letter in enumerate(text) if letter not in self._invisible]
            visible = self._shown(text)
        matches = [places[at] for stop in self._plain if (at := visible.find(stop)) >= 0]
        matches += [at for stop in self._naming if (at := text.find(stop)) >= 0]
        if matches:
            self.found = True
            return self._shown(text[: min(matches)])
        begun = [places[at] for stop in self._plain if (at := _beginning(visible, stop)) >= 0]
        begun += [at for stop in self._naming if (at := _beginning(text, stop)) >= 0]
        keep = min(begun, default=len(text))
        self._held = text[keep:]
        return self._shown(text[:keep])

    def rest(self) -> str:
        """What is still held back."""
        return self._shown(self._held)

    def _shown(self, text: str) -> str:
        if self._invisible.isdisjoint(text):
            return text
        return "".join(letter for letter in text if letter not in self._invisible)


def _beginning(text: str, stop: str) -> int:
    """Where a stop may have begun that `text` ends inside of; -1 where it has not."""
    for at in range(max(0, len(text) - len(stop) + 1), len(text)):
        if stop.startswith(text[at:]):
            return at
    return -1
