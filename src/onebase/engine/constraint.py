"""Constrained decoding: JSON, or a value of a JSON schema, with llguidance's grammars.

Before each token, the grammar decides which tokens may follow. That mask is computed in a separate
thread, without the GIL, while the model computes the logits.
"""

from collections.abc import Iterable
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
# Between JSON tokens: one space, or a line break with indentation. Small models get stuck in unbounded
# whitespace; without any, a list ends where the model wants a space.
_WHITESPACE = r"(\x20|\x0A\x20{0,32}|\x0A\x09{0,8})"

_worker = ThreadPoolExecutor(1, thread_name_prefix="grammar")
_tokenizers: WeakKeyDictionary[Any, LLTokenizer] = WeakKeyDictionary()
_building = Lock()


@dataclass(frozen=True)
class Constraint:
    """The format of an answer. `json_object`: any JSON object. `json_schema`: a value of `schema`,
    which is the schema's JSON text.
    """

    kind: Literal["json_object", "json_schema"]
    schema: str = ""


class ConstraintState:
    """The state of one answer in its grammar. The tokens `ends` are allowed where the answer may end;
    other control tokens are never allowed.

    `complete`: only an end token can follow. `error`: why the grammar cannot go on. It has become too
    complex, or it was given a token that it does not allow.

    Raises UsageError for a schema that is invalid or unsupported, and for a tokenizer that llguidance
    cannot read.
    """

    def __init__(self, constraint: Constraint, tokenizer: Any, ends: Iterable[int]) -> None:
        self._ends = sorted(ends)
        ll_tokenizer = _ll_tokenizer(tokenizer)
        self._matcher = _grammar(constraint, ll_tokenizer).deep_copy()
        self._control_tokens = {*self._ends, *ll_tokenizer.eos_tokens}
        size = max(ll_tokenizer.vocab_size, *(token + 1 for token in self._control_tokens))
        self._mask = np.zeros(-(-size // 32), np.uint32)
        self._grammar_bytes = 4 * -(-ll_tokenizer.vocab_size // 32)
        self._pending: Future[None] | None = None
        self.complete = False

    @property
    def error(self) -> str:
        """Why the grammar cannot go on; empty if it can."""
        return _reason(self._matcher.get_error()) if self._matcher.is_error() else ""

    def start(self) -> None:
        """Start computing the mask of the next token."""
        if self._pending is None:
            self._pending = _worker.submit(self._compute)

    def mask(self) -> NDArray[np.uint32]:
        """One bit per token, 1 if it may come next. Valid until `advance`."""
        self.start()
        assert self._pending is not None
        self._pending.result()
        return self._mask

    def advance(self, token: int) -> None:
        """Advance the grammar by the sampled token."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
        if token not in self._ends:
            self._matcher.consume_token(token)
            self.complete = self._matcher.is_stopped() and not self._matcher.is_error()

    def _compute(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._grammar_bytes)
        # llguidance has its own end token; ours are those of the training data.
        for token in self._control_tokens:
            self._mask[token >> 5] &= ~np.uint32(1 << (token & 31))
        if self._matcher.is_accepting():
            for end in self._ends:
                self._mask[end >> 5] |= np.uint32(1 << (end & 31))


def _ll_tokenizer(tokenizer: Any) -> LLTokenizer:
    """The llguidance version of a tokenizer. It takes a second or two to build and is cached."""
    with _building:
        if tokenizer not in _tokenizers:
            reason = say("it has no fast tokenizer", "没有快速分词器（fast tokenizer）")
            try:
                if not tokenizer.is_fast:
                    raise ValueError(reason)
                _tokenizers[tokenizer] = LLTokenizer(
                    _tokenizer_json(tokenizer.backend_tokenizer), eos_token=tokenizer.eos_token_id
                )
            except ValueError as error:
                raise UsageError(
                    say(
                        f"Answers of this base can't be constrained: {_reason(error)}.",
                        f"无法约束该基座模型的输出格式：{_reason(error)}。",
                    ),
                    say(
                        "Ask for JSON in the prompt, without a response format.",
                        "请去掉输出格式参数，改为在提示中要求输出 JSON。",
                    ),
                ) from error
        return _tokenizers[tokenizer]


def _tokenizer_json(tokenizer: Any) -> str:
    """A tokenizer of the tokenizers library as JSON, without padding and truncation."""
    bare = type(tokenizer).from_str(tokenizer.to_str())
    bare.no_padding()
    bare.no_truncation()
    text: str = bare.to_str()
    return text


@lru_cache(maxsize=32)
def _grammar(constraint: Constraint, tokenizer: LLTokenizer) -> LLMatcher:
    """The matcher of a constraint at the start of its grammar. It takes up to a second to build and is
    cached: advance copies only.
    """
    schema = constraint.schema if constraint.kind == "json_schema" else '{"type": "object"}'
    try:
        grammar = LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_pattern": _WHITESPACE}
        )
    except ValueError as error:
        raise _unusable(error) from error
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise _unusable(matcher.get_error())
    return matcher


def _unusable(reason: object) -> UsageError:
    return UsageError(
        say(
            f"The JSON schema can't be used: {_reason(reason)}.",
            f"无法使用该 JSON Schema：{_reason(reason)}。",
        ),
        say("Correct the schema, or leave that part out.", "请修正该 Schema，或去掉这一部分。"),
    )


def _reason(error: object) -> str:
    """An error message of llguidance, in one line."""
    return " ".join(str(error).split()).removesuffix(".")[:_LONGEST_REASON]
