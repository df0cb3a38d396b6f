"""A form that an answer must have: JSON, or a value of a JSON schema, by llguidance's grammars.

A grammar says before each token which ones may follow. That is computed on a thread of its own, which
holds no GIL, while the model computes.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from onebase.errors import UsageError
from onebase.language import say

_LONGEST_REASON = 300
# At one place a space, or a line break with its indentation: unbounded whitespace is a loop that
# small models fall into, and none at all makes a list end where a model wants a space.
_WHITESPACE = r"(\x20|\x0A\x20{0,32}|\x0A\x09{0,8})"

_worker = ThreadPoolExecutor(1, thread_name_prefix="grammar")
_tokenizers: WeakKeyDictionary[Any, LLTokenizer] = WeakKeyDictionary()
_building = Lock()


@dataclass(frozen=True)
class Constraint:
    """`json_object`: any JSON object; `json_schema`: a value of `schema`, the schema's JSON text."""

    kind: Literal["json_object", "json_schema"]
    schema: str = ""

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any]) -> "Constraint":
        """The constraint of a parsed JSON schema."""
        return cls("json_schema", json.dumps(schema))


class ConstraintState:
    """Where one answer stands in its grammar. `ends` are allowed where the answer may end, no other
    control token ever is.

    It is `complete` when only the end can follow. `error` says why the grammar can't go on: it has
    become too complex, or was given a token that it does not allow.

    Raises UsageError for a schema that is wrong or uses what is not supported, and for a tokenizer
    whose tokens llguidance can't read.
    """

    def __init__(self, constraint: Constraint, tokenizer: Any, ends: Iterable[int]) -> None:
        self._ends = sorted(ends)
        words = _words(tokenizer)
        self._matcher = _matcher(constraint, words)
        self._controlled = {*self._ends, *words.eos_tokens}
        size = max(words.vocab_size, *(token + 1 for token in self._controlled))
        self._mask = np.zeros(-(-size // 32), np.uint32)
        self._grammar_bytes = 4 * -(-words.vocab_size // 32)
        self._pending: Future[None] | None = None
        self.complete = False

    @property
    def error(self) -> str:
        """Why the grammar can't go on; empty as a rule."""
        return _reason(self._matcher.get_error()) if self._matcher.is_error() else ""

    def start(self) -> None:
        """Begin to compute the mask of the next token."""
        if self._pending is None:
            self._pending = _worker.submit(self._compute)

    def mask(self) -> NDArray[np.uint32]:
        """A bit for each token, 1 where it may come next; valid until `advance`."""
        self.start()
        assert self._pending is not None
        self._pending.result()
        return self._mask

    def advance(self, token: int) -> None:
        """Take in the token that was drawn."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
        if token not in self._ends:
            self._matcher.consume_token(token)
            self.complete = self._matcher.is_stopped() and not self._matcher.is_error()

    def _compute(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._grammar_bytes)
        # llguidance has an end token of its own: ours are those that training taught.
        for token in self._controlled:
            self._mask[token >> 5] &= ~np.uint32(1 << (token & 31))
        if self._matcher.is_accepting():
            for end in self._ends:
                self._mask[end >> 5] |= np.uint32(1 << (end & 31))


def _words(tokenizer: Any) -> LLTokenizer:
    """llguidance's view of a tokenizer, made once: it takes a second or two."""
    with _building:
        if tokenizer not in _tokenizers:
            reason = say("it has no fast tokenizer", "没有快速分词器（fast tokenizer）")
            try:
                if not tokenizer.is_fast:
                    raise ValueError(reason)
                _tokenizers[tokenizer] = LLTokenizer(
                    _pipeline(tokenizer.backend_tokenizer), eos_token=tokenizer.eos_token_id
                )
            except ValueError as error:
                raise UsageError(
                    say(
                        f"Answers of this base can't be constrained: {_reason(error)}.",
                        f"无法约束该基座模型的输出格式：{_reason(error)}。",
                    ),
                    say(
                        "Ask for JSON in the prompt, without a response format.",
                        "请去掉输出格式参数，改为在提示中要求 JSON。",
                    ),
                ) from error
        return _tokenizers[tokenizer]


def _pipeline(tokenizer: Any) -> str:
    """A tokenizer of the tokenizers library as JSON, without what pads and cuts texts."""
    bare = type(tokenizer).from_str(tokenizer.to_str())
    bare.no_padding()
    bare.no_truncation()
    text: str = bare.to_str()
    return text


def _matcher(constraint: Constraint, words: LLTokenizer) -> LLMatcher:
    return _compiled(constraint, words).deep_copy()


@lru_cache(maxsize=32)
def _compiled(constraint: Constraint, words: LLTokenizer) -> LLMatcher:
    """A form's grammar at its start, which takes up to a second. Never advanced itself."""
    schema = constraint.schema if constraint.kind == "json_schema" else '{"type": "object"}'
    try:
        grammar = LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_pattern": _WHITESPACE}
        )
    except ValueError as error:
        raise _unusable(error) from error
    matcher = LLMatcher(words, grammar, log_level=0)
    if matcher.is_error():
        raise _unusable(matcher.get_error())
    return matcher


def _unusable(reason: object) -> UsageError:
    return UsageError(
        say(
            f"The JSON schema can't be used: {_reason(reason)}.",
            f"无法使用该 JSON Schema：{_reason(reason)}。",
        ),
        say("Correct it, or leave that part out.", "请修正，或去掉这一部分。"),
    )


def _reason(error: object) -> str:
    """llguidance's own words, in one line."""
    return " ".join(str(error).split()).removesuffix(".")[:_LONGEST_REASON]
