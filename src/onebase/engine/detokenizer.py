"""Incremental detokenization. The work per token does not grow with the answer."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from onebase.engine.token_bytes import token_bytes

# While stops are matched, lone surrogates stand for hidden tokens: no text decoded from bytes has any.
_FIRST_PLACEHOLDER = 0xD800


class Detokenizer:
    """The visible text of one answer. `hidden` tokens have no text, but a stop may contain their names.

    A character is returned when its last byte has arrived. Invalid bytes become U+FFFD, as in the
    tokenizer's own decoding; an incomplete character at the end is dropped.

    The answer is `stopped` as soon as it contains one of `stops`; its text ends before the earliest
    one. Text that may be the beginning of a stop is held back. Spaces before punctuation are kept
    (`clean_up_tokenization_spaces` is off): they are the model's answer.
    """

    def __init__(
        self, tokenizer: Any, hidden: frozenset[int] = frozenset(), stops: Iterable[str] = ()
    ) -> None:
        self._bytes = token_bytes(tokenizer)
        self._hidden = hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")(self._bytes.errors)
        self._first: int | None = None
        self._previous: int | None = None
        self._has_text = False
        stops = tuple(stops)
        self._matcher = _StopMatcher(tokenizer, hidden, stops) if stops else None
        self.stopped = False

    def add(self, token: int) -> str:
        """Add the next token; returns the text that becomes visible."""
        if self.stopped:
            return ""
        if token in self._hidden:
            text = self._matcher.placeholder(token) if self._matcher else ""
        else:
            text = self._decoder.decode(self._token_bytes(token))
        if self._matcher is None or not text:
            return text
        visible = self._matcher.add(text)
        self.stopped = self._matcher.matched
        return visible

    def finish(self, end: int | None = None) -> str:
        """The text that was held back, when the answer ends at the token `end` or without one."""
        if self.stopped or self._matcher is None:
            return ""
        visible = self.add(end) if end in self._hidden else ""
        return visible if self.stopped else visible + self._matcher.rest()

    def _token_bytes(self, token: int) -> bytes:
        if self._has_text:
            data = self._bytes.inside(token, self._previous)
        else:
            data = self._bytes.at_start(token, self._first)
            self._has_text = bool(data)
            if self._first is None:
                self._first = token
        self._previous = token
        return data


class _StopMatcher:
    """Finds stops in a text that arrives in parts, and holds back what may be the beginning of one.

    A hidden token whose name is in a stop is represented by a placeholder, a single letter that only
    such stops can match. The other stops are matched against the visible text.
    """

    def __init__(self, tokenizer: Any, hidden: frozenset[int], stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        names = {token: tokenizer.convert_ids_to_tokens(token) for token in hidden}
        named = [
            token
            for token, name in names.items()
            if name and any(name in stop for stop in self._stops)
        ]
        self._placeholders = {
            token: chr(_FIRST_PLACEHOLDER + index) for index, token in enumerate(named)
        }
        self._invisible = frozenset(self._placeholders.values())
        # The longest name first: one may be part of another.
        named.sort(key=lambda token: len(names[token]), reverse=True)
        self._placeholder_stops = []
        for stop in self._stops:
            for token in named:
                stop = stop.replace(names[token], self._placeholders[token])  # noqa: PLW2901
            if self._invisible & set(stop):
                self._placeholder_stops.append(stop)
        self._held = ""
        self.matched = False

    def placeholder(self, token: int) -> str:
        """The placeholder of a hidden token; empty if no stop contains its name."""
        return self._placeholders.get(token, "")

    def add(self, new: str) -> str:
        """Add the next part of the text; returns what becomes visible."""
        text = self._held + new
        visible = text
        indices: Sequence[int] = range(len(text))  # of the visible letters
        if not self._invisible.isdisjoint(text):
            indices = [at for at, letter in enumerate(text) if letter not in self._invisible]
            visible = self._visible(text)
        matches = [indices[at] for stop in self._stops if (at := visible.find(stop)) >= 0]
        matches += [at for stop in self._placeholder_stops if (at := text.find(stop)) >= 0]
        if matches:
            self.matched = True
            return self._visible(text[: min(matches)])
        partial = [indices[at] for stop in self._stops if (at := _partial(visible, stop)) >= 0]
        partial += [at for stop in self._placeholder_stops if (at := _partial(text, stop)) >= 0]
        held_from = min(partial, default=len(text))
        self._held = text[held_from:]
        return self._visible(text[:held_from])

    def rest(self) -> str:
        """The visible part of the text that is held back."""
        return self._visible(self._held)

    def _visible(self, text: str) -> str:
        if self._invisible.isdisjoint(text):
            return text
        return "".join(letter for letter in text if letter not in self._invisible)


def _partial(text: str, stop: str) -> int:
    """The first index from which `text` ends with a beginning of `stop`; -1 if there is none."""
    for at in range(max(0, len(text) - len(stop) + 1), len(text)):
        if stop.startswith(text[at:]):
            return at
    return -1
