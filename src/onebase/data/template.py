"""How an example becomes tokens, and which of them are learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import count
from typing import Any, Self

from jinja2 import TemplateError

from onebase.data.ends import Ends, ends_of, hidden_tokens, special_tokens
from onebase.data.example import Example, Turn
from onebase.data.layout import ChatLayout, Layout, Piece, PlainLayout
from onebase.data.places import PLACE, leading, shown, stretches, with_places
from onebase.errors import DataError, UsageError, unknown
from onebase.language import say

MAX_TOKENS = 512  # unless chosen
_SETTINGS = ("kind", "instruction", "max_tokens")


@dataclass(frozen=True)
class Rendered:
    """An example as token ids; `loss_mask[i]` says whether `ids[i]` is to be predicted. `rewritten` counts
    the earlier answers that are not trained on because the chat template rewrites them.
    """

    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    truncated: bool
    rewritten: int = 0

    @property
    def begin(self) -> int:
        """Where the last answer begins; the number of tokens where nothing is left of it."""
        begin = len(self.ids)
        while begin > 0 and self.loss_mask[begin - 1]:
            begin -= 1
        return begin


@dataclass(frozen=True)
class _Tokens:
    text: str
    ids: list[int]
    learned: bool


class Template:
    """Turns inputs into prompts and examples into learned sequences, with one tokenizer.

    `kind` is `chat` (the tokenizer's chat template), `plain` (a layout for base models), `auto`
    (`chat` if the tokenizer has a chat template, else `plain`), or a text with `{input}` and, at
    will, `{instruction}`, which the answer follows directly.

    An example longer than `max_tokens` is shortened so: first the content of the last user turn
    loses tokens at its end, so that the layout around it stays whole. Where even that content
    left out would not make room for the answer, the answer is cut at its end too and loses its
    end token; the content then keeps up to a quarter of `max_tokens`, for an answer to nothing
    teaches nothing. A layout that alone is too long is cut at its end as well.

    `{v:4}` in the text or the instruction marks places for virtual tokens. Those that a text
    begins with stand before everything (`leading` of them), the others where they are marked
    (`placed`); every repetition of the text, in a conversation, has the same ones.

    A chat template may write the date: that of `moment`, or of each rendering where there is none.

    Raises `UsageError` for a kind, a text or a size that can't be used.
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
                say(f"max_tokens is {max_tokens}.", f"max_tokens 为 {max_tokens}。"),
                say("It must be at least 2.", "它至少为 2。"),
            )
        if kind == "auto":
            kind = "chat" if tokenizer.chat_template else "plain"
        self.kind = kind
        self.instruction = instruction
        self.max_tokens = max_tokens
        self.moment = moment
        self._tokenizer = tokenizer
        text, self._instruction = with_places(kind), with_places(instruction or "")
        self.leading = leading(text)
        self.placed = (text + self._instruction).count(PLACE) - self.leading
        self._layout = _layout(tokenizer, text[self.leading :], self._instruction or None, moment)

    @property
    def dated(self) -> bool:
        """Whether it writes the date of its `moment`."""
        return self._layout.dated

    def at(self, moment: datetime) -> "Template":
        """This template with another moment."""
        return Template(self._tokenizer, **self.config(), moment=moment)

    @property
    def end(self) -> str:
        """The text that is learned as the end of an answer; empty where nothing ends one."""
        return self._layout.end

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer: what is learned as its end, and the tokenizer's own."""
        return self._ends.tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer, where the layout writes more than one token after it.

        They are spelt with their control tokens, and are not part of the answer.
        """
        return self._ends.texts

    @cached_property
    def hidden(self) -> frozenset[int]:
        """The control tokens that an answer is shown without.

        A special token that is only a word of the user's data is not among them.
        """
        return hidden_tokens(self._tokenizer, self._layout.written, self._ends)

    @cached_property
    def _ends(self) -> Ends:
        return ends_of(self._tokenizer, self._layout.ending)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The texts that the tokenizer reads as control tokens, wherever they stand, and their ids."""
        return special_tokens(self._tokenizer)

    def prompt(self, input: str | Sequence[Turn]) -> list[int]:
        """The token ids that generation starts from: an example's context, to the token.

        `input` is a user's text, or turns that end with a user's. Never truncated.
        Raises `UsageError` for other turns, and for turns that the chat template refuses.
        """
        return self._counted([self._ids(piece.text) for piece in self._context(input)])

    def prompt_text(self, input: str | Sequence[Turn]) -> str:
        """The text of `prompt`, as the model sees it."""
        return shown("".join(piece.text for piece in self._context(input)))

    def example(self, example: Example) -> Rendered:
        """The tokens of an example, at most `max_tokens`, and which of them are learned.

        Raises `DataError` for turns that the chat template refuses.
        """
        return self.answers([example])[0]

    def answers(self, examples: Sequence[Example]) -> tuple[Rendered, ...]:
        """The tokens of examples that differ in their last answer alone. Their prompt is the same to the
        token: it is cut for the longest answer.

        Raises `DataError` for turns that the chat template refuses.
        """
        every, truncated, rewritten = self._fit(examples)
        return tuple(
            Rendered(
                tuple(self._counted([piece.ids for piece in tokens])),
                tuple(piece.learned for piece in tokens for _ in piece.ids),
                truncated,
                rewritten,
            )
            for tokens in every
        )

    def answer_ids(self, answer: str) -> list[int]:
        """The token ids that are learned for an answer (or a label), its end token among them."""
        return self._ids(self._layout.answer([Turn("user", "?")], answer))

    def marked(self, example: Example) -> str:
        """The text of an example after truncation, what is learned between ⟦ and ⟧."""
        return self.marked_answers([example])[0]

    def marked_answers(self, examples: Sequence[Example]) -> list[str]:
        """The texts of examples as `answers` cuts them, what is learned between ⟦ and ⟧."""
        every, _, _ = self._fit(examples)
        return [
            shown("".join(f"⟦{piece.text}⟧" if piece.learned else piece.text for piece in tokens))
            for tokens in every
        ]

    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build this template again."""
        return {name: getattr(self, name) for name in _SETTINGS}

    @classmethod
    def from_config(cls, tokenizer: Any, config: Mapping[str, Any]) -> Self:
        """The template that `config()` described. Raises `UsageError` for an unknown key."""
        for key in config:
            if key not in _SETTINGS:
                raise unknown("template setting", "模板设置", key, _SETTINGS)
        return cls(tokenizer, **config)

    def _ids(self, text: str) -> list[int]:
        """The tokens of a text; a place is -1."""
        if not self.placed:
            return self._text_ids(text)
        ids: list[int] = []
        for between, places in stretches(text):
            ids += self._text_ids(between) if between else []
            ids += [-1] * places
        return ids

    def _text_ids(self, text: str) -> list[int]:
        # verbose: no warning for a text beyond the model's length, it is cut to fit later.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _counted(self, pieces: Sequence[list[int]]) -> list[int]:
        """The pieces in one list, their places numbered: -1, -2, …"""
        ids = [token for piece in pieces for token in piece]
        if not self.placed:
            return ids
        number = count()
        return [token if token >= 0 else -1 - next(number) % self.placed for token in ids]

    def _context(self, input: str | Sequence[Turn]) -> list[Piece]:
        turns = [Turn("user", input)] if isinstance(input, str) else list(input)
        turns = self._without_places(turns)
        if not turns or turns[-1].role != "user":
            raise UsageError(
                say("The turns do not end with a user's.", "对话的最后一轮不是用户消息。"),
                say("Give what the user asks last.", "请在最后给出用户的提问。"),
            )
        try:
            return self._layout.context(turns)
        except TemplateError as refusal:
            raise UsageError(
                say(
                    f"The chat template refuses these turns: {refusal}.",
                    f"对话模板不接受这些消息：{refusal}。",
                ),
                say("Let user and assistant take turns.", "请让用户与助手轮流发言。"),
            ) from refusal

    def _without_places(self, turns: Sequence[Turn]) -> list[Turn]:
        """`turns` without the noncharacter that stands for a place."""
        if not self.placed:
            return list(turns)
        return [replace(turn, content=turn.content.replace(PLACE, "")) for turn in turns]

    def _tokens(self, example: Example) -> list[_Tokens]:
        context = self._without_places(example.turns[:-1])
        try:
            (said,) = self._without_places(example.turns[-1:])
            answer = Piece(self._layout.answer(context, said.content), learned=True)
            pieces = [*self._layout.context(context), answer]
        except TemplateError as refusal:
            raise DataError(
                say(
                    f"{example.file}:{example.line}: the chat template refuses these turns: "
                    f"{refusal}.",
                    f"{example.file}:{example.line}：对话模板不接受这些消息：{refusal}。",
                ),
                say("Mend the row, or use the plain template.", "请修正该行，或使用 plain 模板。"),
            ) from refusal
        return [_Tokens(piece.text, self._ids(piece.text), piece.learned) for piece in pieces]

    def _fit(self, examples: Sequence[Example]) -> tuple[list[list[_Tokens]], bool, int]:
        """The examples within `max_tokens`, with one prompt; whether they were cut for it; and how many
        earlier answers the template has rewritten.
        """
        every = [self._tokens(example) for example in examples]
        rewritten = _rewritten(examples[0], every[0])
        over = max(map(_length, every)) - self.max_tokens
        if over <= 0:
            return every, False, rewritten
        content = _Content(self._tokenizer, examples[0].input)
        keep = len(content)
        # The answer does not fit beside any content: it will be cut, so leave the question some.
        floor = min(keep, self.max_tokens // 4) if over > keep else 0
        while over > 0 and keep > floor:
            keep = max(keep - over, floor)
            asked = content.first(keep)
            every = [self._tokens(_with_input(example, asked)) for example in examples]
            over = max(map(_length, every)) - self.max_tokens
        return [self._cut(tokens) for tokens in every], True, rewritten

    def _cut(self, tokens: list[_Tokens]) -> list[_Tokens]:
        """`tokens` without what exceeds `max_tokens` at their end."""
        room = self.max_tokens
        kept: list[_Tokens] = []
        for piece in tokens:
            if len(piece.ids) > room:
                ids = piece.ids[:room]
                text = self._tokenizer.decode([token for token in ids if token >= 0])
                piece = replace(piece, ids=ids, text=text)  # noqa: PLW2901
            kept.append(piece)
            room -= len(piece.ids)
        return [piece for piece in kept if piece.ids]


class _Content:
    """A text that can be cut after about so many of its tokens."""

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
        """The text's beginning of about `count` tokens, never a part of a character."""
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
    """How many answers before the last were to be learned and are context alone."""
    if len(example.turns) < 4:
        return 0
    first = next(at for at, turn in enumerate(example.turns) if turn.role == "user")
    earlier = sum(turn.role == "assistant" and turn.learned for turn in example.turns[first:-1])
    return max(0, earlier - sum(piece.learned for piece in tokens[:-1]))


def _with_input(example: Example, content: str) -> Example:
    """`example` with another content in its last user turn."""
    last = max(at for at, turn in enumerate(example.turns) if turn.role == "user")
    turns = list(example.turns)
    turns[last] = replace(turns[last], content=content)
    return replace(example, turns=tuple(turns))
