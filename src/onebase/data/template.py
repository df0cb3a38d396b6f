"""Templates: turning examples into tokens and a loss mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import count
from typing import Any, Self

from jinja2 import TemplateError

from onebase.data.eos import Ends, ends_of, hidden_tokens, special_tokens
from onebase.data.example import Example, Turn
from onebase.data.layout import ChatLayout, Layout, Piece, PlainLayout
from onebase.data.virtual_tokens import (
    PLACEHOLDER,
    leading,
    shown,
    split_at_placeholders,
    with_placeholders,
)
from onebase.errors import DataError, UsageError, unknown
from onebase.language import say

MAX_TOKENS = 512  # unless chosen
_SETTINGS = ("kind", "instruction", "max_tokens")


def last_answer(loss_mask: Sequence[bool]) -> int:
    """The index where the last answer begins; the number of tokens if it is truncated away."""
    begin = len(loss_mask)
    while begin > 0 and loss_mask[begin - 1]:
        begin -= 1
    return begin


@dataclass(frozen=True)
class Rendered:
    """An example as token ids; `loss_mask[i]` says whether `ids[i]` is in the loss. `rewritten` counts
    the earlier answers that are not trained on because the chat template rewrites them.
    """

    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    truncated: bool
    rewritten: int = 0

    @property
    def begin(self) -> int:
        """The index where the last answer begins; the number of tokens if it is truncated away."""
        return last_answer(self.loss_mask)


@dataclass(frozen=True)
class _Tokens:
    text: str
    ids: list[int]
    in_loss: bool


class Template:
    """Turns inputs into prompts and examples into training sequences, with one tokenizer.

    `kind` is `chat` (the tokenizer's chat template), `plain` (a layout for base models), `auto`
    (`chat` if the tokenizer has a chat template, else `plain`), or a text with `{input}` and,
    optionally, `{instruction}`, directly followed by the answer.

    An example longer than `max_tokens` is truncated as follows. First the content of the last user
    turn loses tokens at its end, so that the layout around it stays complete. If the answer would not
    fit even without that content, the answer is also cut at its end and loses its end token; the
    content then keeps up to a quarter of `max_tokens`, because an answer without a question teaches
    nothing. A layout that alone is too long is cut at its end as well.

    `{v:4}` in the text or the instruction marks places for virtual tokens. Those at the beginning of
    the text stand before everything (`leading`), the others where they are marked (`placed`). When
    the text is repeated in a conversation, it has the same virtual tokens every time.

    A chat template may write the date: that of `moment`, or without one that of each rendering.

    Raises `UsageError` for an invalid kind, text or size.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        kind: str = "auto",
        instruction: str | None = None,
        max_tokens: int = MAX_TOKENS,
        moment: datetime | None = None,
    ) -> None:
        if max_tokens < 2:
            raise UsageError(
                say(f"max_tokens={max_tokens} is too small.", f"max_tokens={max_tokens} 过小。"),
                say("It must be at least 2.", "它至少应为 2。"),
            )
        if kind == "auto":
            kind = "chat" if tokenizer.chat_template else "plain"
        self.kind = kind
        self.instruction = instruction
        self.max_tokens = max_tokens
        self.moment = moment
        self._tokenizer = tokenizer
        text, self._instruction = with_placeholders(kind), with_placeholders(instruction or "")
        self.leading = leading(text)
        self.placed = (text + self._instruction).count(PLACEHOLDER) - self.leading
        self._layout = _layout(tokenizer, text[self.leading :], self._instruction or None, moment)

    @property
    def dated(self) -> bool:
        """Whether the layout writes the date of `moment`."""
        return self._layout.dated

    def at(self, moment: datetime) -> "Template":
        """The same template with another `moment`."""
        return Template(self._tokenizer, **self.config(), moment=moment)

    @property
    def end(self) -> str:
        """The text that ends an answer in training; empty if nothing ends it."""
        return self._layout.end

    @property
    def ends(self) -> frozenset[int]:
        """The end tokens of an answer: the one in the loss, and the tokenizer's own."""
        return self._ends.tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, if the layout writes more than one token after an answer.

        They contain their control tokens as text, and are not part of the answer.
        """
        return self._ends.texts

    @cached_property
    def hidden(self) -> frozenset[int]:
        """The control tokens that are removed from a shown answer.

        A special token that occurs only in the user's data is not one of them.
        """
        return hidden_tokens(self._tokenizer, self._layout.written, self._ends)

    @cached_property
    def _ends(self) -> Ends:
        return ends_of(self._tokenizer, self._layout.ending)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The ids of the tokenizer's special tokens by their text; it reads them anywhere in a text."""
        return special_tokens(self._tokenizer)

    def prompt(self, input: str | Sequence[Turn]) -> list[int]:
        """The token ids that generation starts from, the same as an example's context in training.

        `input` is a user's text, or turns that end with the user's. Never truncated.
        Raises `UsageError` for other turns, and for turns that the chat template refuses.
        """
        return self._counted([self._ids(piece.text) for piece in self._context(input)])

    def prompt_text(self, input: str | Sequence[Turn]) -> str:
        """The text of `prompt`, as the model sees it."""
        return shown("".join(piece.text for piece in self._context(input)))

    def example(self, example: Example) -> Rendered:
        """The tokens of an example, at most `max_tokens`, with their loss mask.

        Raises `DataError` for turns that the chat template refuses.
        """
        return self.answers([example])[0]

    def answers(self, examples: Sequence[Example]) -> tuple[Rendered, ...]:
        """The tokens of examples that differ only in their last answer. Their prompt tokens are the same,
        truncated for the longest answer.

        Raises `DataError` for turns that the chat template refuses.
        """
        fitted, truncated, rewritten = self._fit(examples)
        return tuple(
            Rendered(
                tuple(self._counted([piece.ids for piece in tokens])),
                tuple(piece.in_loss for piece in tokens for _ in piece.ids),
                truncated,
                rewritten,
            )
            for tokens in fitted
        )

    def answer_ids(self, answer: str) -> list[int]:
        """The token ids of an answer (or a label) in the loss, including its end token."""
        return self._ids(self._layout.answer([Turn("user", "?")], answer))

    def marked(self, example: Example) -> str:
        """The text of an example after truncation, with the parts in the loss between ⟦ and ⟧."""
        return self.marked_answers([example])[0]

    def marked_answers(self, examples: Sequence[Example]) -> list[str]:
        """The texts of examples truncated as by `answers`, with the parts in the loss between ⟦ and ⟧."""
        fitted, _, _ = self._fit(examples)
        return [
            shown("".join(f"⟦{piece.text}⟧" if piece.in_loss else piece.text for piece in tokens))
            for tokens in fitted
        ]

    def config(self) -> dict[str, Any]:
        """The settings from which `from_config` builds this template again."""
        return {name: getattr(self, name) for name in _SETTINGS}

    @classmethod
    def from_config(cls, tokenizer: Any, config: Mapping[str, Any]) -> Self:
        """The template for the settings of `config()`. Raises `UsageError` for an unknown key."""
        for key in config:
            if key not in _SETTINGS:
                raise unknown("template setting", "模板设置", key, _SETTINGS)
        return cls(tokenizer, **config)

    def _ids(self, text: str) -> list[int]:
        """The tokens of a text, -1 for each placeholder."""
        if not self.placed:
            return self._text_ids(text)
        ids: list[int] = []
        for between, placeholders in split_at_placeholders(text):
            ids += self._text_ids(between) if between else []
            ids += [-1] * placeholders
        return ids

    def _text_ids(self, text: str) -> list[int]:
        # verbose=False: no warning about texts longer than the model's limit, they are truncated later.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _counted(self, pieces: Sequence[list[int]]) -> list[int]:
        """The pieces in one list, with the placeholders numbered -1, -2, …"""
        ids = [token for piece in pieces for token in piece]
        if not self.placed:
            return ids
        number = count()
        return [token if token >= 0 else -1 - next(number) % self.placed for token in ids]

    def _context(self, input: str | Sequence[Turn]) -> list[Piece]:
        turns = [Turn("user", input)] if isinstance(input, str) else list(input)
        turns = self._without_placeholders(turns)
        if not turns or turns[-1].role != "user":
            raise UsageError(
                say("The last turn is not the user's.", "对话的最后一轮不是用户消息。"),
                say("End the conversation with a user turn.", "请以用户消息结束对话。"),
            )
        try:
            return self._layout.context(turns)
        except TemplateError as refusal:
            raise UsageError(
                say(
                    f"The chat template refuses these turns: {refusal}.",
                    f"对话模板不接受这些消息：{refusal}。",
                ),
                say("Alternate user and assistant turns.", "请让用户与助手轮流发言。"),
            ) from refusal

    def _without_placeholders(self, turns: Sequence[Turn]) -> list[Turn]:
        """`turns` without the placeholder character."""
        if not self.placed:
            return list(turns)
        return [replace(turn, content=turn.content.replace(PLACEHOLDER, "")) for turn in turns]

    def _tokens(self, example: Example) -> list[_Tokens]:
        context = self._without_placeholders(example.turns[:-1])
        try:
            (last_turn,) = self._without_placeholders(example.turns[-1:])
            answer = Piece(self._layout.answer(context, last_turn.content), in_loss=True)
            pieces = [*self._layout.context(context), answer]
        except TemplateError as refusal:
            raise DataError(
                say(
                    f"{example.file}:{example.line}: the chat template refuses these turns: "
                    f"{refusal}.",
                    f"{example.file}:{example.line}：对话模板不接受这些消息：{refusal}。",
                ),
                say(
                    "Correct the row, or use the plain template.", "请修正该行，或使用 plain 模板。"
                ),
            ) from refusal
        return [_Tokens(piece.text, self._ids(piece.text), piece.in_loss) for piece in pieces]

    def _fit(self, examples: Sequence[Example]) -> tuple[list[list[_Tokens]], bool, int]:
        """The examples within `max_tokens` and with the same prompt, whether they were truncated, and how
        many earlier answers the template rewrites.
        """
        fitted = [self._tokens(example) for example in examples]
        rewritten = _rewritten(examples[0], fitted[0])
        over = max(map(_length, fitted)) - self.max_tokens
        if over <= 0:
            return fitted, False, rewritten
        content = _Content(self._tokenizer, examples[0].input)
        keep = len(content)
        # The answer does not fit even without content, so it is cut; keep a part of the content.
        floor = min(keep, self.max_tokens // 4) if over > keep else 0
        while over > 0 and keep > floor:
            keep = max(keep - over, floor)
            shortened = content.first(keep)
            fitted = [self._tokens(_with_input(example, shortened)) for example in examples]
            over = max(map(_length, fitted)) - self.max_tokens
        return [self._cut(tokens) for tokens in fitted], True, rewritten

    def _cut(self, tokens: list[_Tokens]) -> list[_Tokens]:
        """`tokens` cut at their end to `max_tokens`."""
        left = self.max_tokens
        kept: list[_Tokens] = []
        for piece in tokens:
            if len(piece.ids) > left:
                ids = piece.ids[:left]
                text = self._tokenizer.decode([token for token in ids if token >= 0])
                piece = replace(piece, ids=ids, text=text)  # noqa: PLW2901
            kept.append(piece)
            left -= len(piece.ids)
        return [piece for piece in kept if piece.ids]


class _Content:
    """A text that can be cut after a number of tokens, approximately."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self._text = text
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            verbose=False,
            return_offsets_mapping=tokenizer.is_fast,
        )
        self._count = len(encoded["input_ids"])
        self._offsets = encoded["offset_mapping"] if tokenizer.is_fast else None

    def __len__(self) -> int:
        return self._count

    def first(self, count: int) -> str:
        """The first `count` tokens of the text, approximately; never cuts a character."""
        if count <= 0:
            return ""
        if self._offsets is None:
            return self._text[: len(self._text) * count // self._count]
        return self._text[: self._offsets[count - 1][1]]


def _layout(tokenizer: Any, kind: str, instruction: str | None, moment: datetime | None) -> Layout:
    if kind == "plain":
        return PlainLayout(tokenizer, instruction)
    if kind == "chat":
        if not tokenizer.chat_template:
            raise UsageError(
                say("This base has no chat template.", "该基座模型没有对话模板。"),
                say("Use the template `plain` or `auto`.", "请使用 `plain` 或 `auto` 模板。"),
            )
        return ChatLayout(tokenizer, instruction, moment)
    if "{" not in kind:
        raise unknown("template", "模板", kind, ("auto", "chat", "plain", "text with {input}"))
    return PlainLayout(tokenizer, instruction, kind, lead="")


def _length(tokens: Sequence[_Tokens]) -> int:
    return sum(len(piece.ids) for piece in tokens)


def _rewritten(example: Example, tokens: Sequence[_Tokens]) -> int:
    """The number of answers before the last that should be in the loss but are not."""
    if len(example.turns) < 4:
        return 0
    first = next(at for at, turn in enumerate(example.turns) if turn.role == "user")
    earlier = sum(turn.role == "assistant" and turn.in_loss for turn in example.turns[first:-1])
    return max(0, earlier - sum(piece.in_loss for piece in tokens[:-1]))


def _with_input(example: Example, content: str) -> Example:
    """`example` with `content` in its last user turn."""
    last = max(at for at, turn in enumerate(example.turns) if turn.role == "user")
    turns = list(example.turns)
    turns[last] = replace(turns[last], content=content)
    return replace(example, turns=tuple(turns))
