"""Conversation layouts: the tokenizer's chat template, or a plain text template.

A layout yields text in pieces. A piece is either context or an assistant's answer in the loss. Every
piece is tokenized by itself, so the context has the same tokens in training as in generation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from jinja2 import TemplateError

from onebase.data.eos import ending_token, special_tokens
from onebase.data.example import Turn
from onebase.data.template_date import PARTS, date_parts, of_moment, writes_date
from onebase.errors import UsageError
from onebase.language import say

# Suits any task (not every input is a question) and base models of either language.
PLAIN = "{instruction}\n\nInput: {input}\nOutput:"
_PLACEHOLDER = re.compile(r"\{(instruction|input)\}")
_NO_INSTRUCTION = re.compile(r"\{instruction\}\s*")
_PROBE = "0nebase"
_PROBED = [Turn("user", _PROBE), Turn("assistant", _PROBE), Turn("user", _PROBE)]


@dataclass(frozen=True)
class Piece:
    """A text to tokenize by itself; `in_loss` if it is trained on."""

    text: str
    in_loss: bool


class Layout(Protocol):
    """A way to write conversations as text."""

    end: str
    """The text that ends an answer in training; empty if nothing ends it."""
    ending: str
    """The text that the layout itself writes after an answer, without an added end token."""
    written: str
    """A sample conversation in this layout, with the layout's own text around the turns."""
    dated: bool
    """Whether it writes the date or time of its own moment."""

    def context(self, turns: Sequence[Turn]) -> list[Piece]:
        """The text before the next assistant turn; `turns` ends with a user turn.

        Raises `jinja2.TemplateError` if a chat template refuses these turns.
        """
        ...

    def answer(self, turns: Sequence[Turn], answer: str) -> str:
        """The text that `answer` adds to the context of `turns`, including its end token."""
        ...


class ChatLayout:
    """The layout of the tokenizer's own chat template.

    An assistant turn is the text that the template adds to the generation prompt, up to its end token.
    The instruction is the system turn unless a conversation has its own. If the template accepts no
    system turn, that text and a blank line go before the first user turn. If the template writes the
    date, it is that of `moment` (None: of the rendering).
    """

    def __init__(
        self, tokenizer: Any, instruction: str | None, moment: datetime | None = None
    ) -> None:
        self._tokenizer = tokenizer
        template = str(tokenizer.chat_template)
        self.dated = moment is not None and writes_date(template)
        self._date: dict[str, Any] = {}
        if moment is not None and self.dated:
            written = of_moment(tokenizer.get_chat_template())
            self._date = {"chat_template": written, PARTS: date_parts(moment)}
        self._instruction: str | None = None  # the probes below are written without it
        self._eos: str = tokenizer.eos_token or ""
        self._takes_system = self._probe_system()
        self._written_after = _after_probe(self._render(_PROBED[:2], prompt=False))
        token = ending_token(tokenizer, self._written_after)
        self.ending = "".join(token[:2]) if token else self._written_after
        # A special token at the end of the answer itself does not end it.
        self._closing = (self.ending, *special_tokens(tokenizer)) if token else (self._eos,)
        self.end = self._closed(self.ending).strip()
        self.written = self._probe()
        self._instruction = instruction

    def context(self, turns: Sequence[Turn]) -> list[Piece]:
        """Earlier assistant turns are pieces of their own, in the loss if their turn is and if the template
        writes them unchanged.
        """
        conversation = self._render(turns, prompt=True)
        pieces: list[Piece] = []
        end = 0  # of the last piece
        after_user = False
        for index, turn in enumerate(turns):
            after_user = after_user or turn.role == "user"
            if turn.role != "assistant" or not after_user:  # a greeting is no answer
                continue
            before = self._render(turns[:index], prompt=True)
            after = self._render(turns[: index + 1], prompt=False)
            answer = self._ended(after[len(before) :].rstrip())
            if not after.startswith(before) or not conversation.startswith(before + answer):
                return [Piece(conversation, in_loss=False)]
            pieces += [Piece(before[end:], in_loss=False), Piece(answer, turn.in_loss)]
            end = len(before) + len(answer)
        return [*pieces, Piece(conversation[end:], in_loss=False)]

    def answer(self, turns: Sequence[Turn], answer: str) -> str:
        """The text that the template adds for `answer`, or the answer and its end if it rewrites the prompt."""
        before = self._render(turns, prompt=True)
        after = self._render([*turns, Turn("assistant", answer)], prompt=False)
        unchanged = after.startswith(before)
        added = self._ended(after[len(before) :].rstrip()) if unchanged else answer + self.ending
        return self._closed(added)

    def _ended(self, added: str) -> str:
        """`added` up to its end token. Text after that is not in the loss: usually a new line, in
        Phi-3's template a second token at the end of a conversation.
        """
        after = self._written_after
        return added.removesuffix(after) + self.ending if added.endswith(after) else added

    def _closed(self, added: str) -> str:
        """`added` with the tokenizer's end token, unless the template has already ended it."""
        return added if added.endswith(self._closing) else added + self._eos

    def _probe(self) -> str:
        """Sample conversations in the template: one that ends with an answer, one with an earlier answer."""
        system = [Turn("system", _PROBE)] if self._takes_system else []
        last = self._render(_PROBED[:2], prompt=False)
        try:
            return last + self._render([*system, *_PROBED], prompt=True)
        except TemplateError:
            return last

    def _render(self, turns: Sequence[Turn], *, prompt: bool) -> str:
        turns = self._with_system(turns)
        text: str = self._tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            tokenize=False,
            add_generation_prompt=prompt,
            **self._date,
        )
        return text

    def _with_system(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        if self._instruction and turns[0].role != "system":
            turns = [Turn("system", self._instruction), *turns]
        if self._takes_system or turns[0].role != "system":
            return turns
        system, *rest = turns
        first = next(index for index, turn in enumerate(rest) if turn.role == "user")
        rest[first] = replace(rest[first], content=f"{system.content}\n\n{rest[first].content}")
        return rest

    def _probe_system(self) -> bool:
        """Whether a system turn is accepted and not silently dropped."""
        self._takes_system = True
        try:
            return _PROBE in self._render([Turn("system", _PROBE), Turn("user", "?")], prompt=True)
        except TemplateError:
            return False


class PlainLayout:
    """The layout of a text with the placeholder `{input}` and, optionally, `{instruction}`.

    The text is filled in for every user turn; `lead` stands before an answer. A conversation's own
    system turn replaces the instruction. If the text has no `{instruction}`, the instruction and a
    blank line go before it.
    """

    def __init__(
        self, tokenizer: Any, instruction: str | None, text: str = PLAIN, *, lead: str = " "
    ) -> None:
        rest = _PLACEHOLDER.sub("", text)
        if "{input}" not in text or "{" in rest or "}" in rest:
            raise UsageError(
                say(
                    f"The template {text!r} is not valid.",
                    f"模板 {text!r} 无效。",
                ),
                say(
                    "It must contain {input}, may contain {instruction}, and no other braces.",
                    "它必须含有 {input}，可以含有 {instruction}，不能有其他花括号。",
                ),
            )
        self._instruction = instruction or ""
        self._text = text
        self._lead = lead
        self.dated = False
        self.end: str = tokenizer.eos_token or ""
        self.ending = ""
        first = tokenizer("a", verbose=False)["input_ids"][:1]
        adds_bos = tokenizer.bos_token is not None and first == [tokenizer.bos_token_id]
        self._start: str = tokenizer.bos_token if adds_bos else ""
        self.written = self._start + _PLACEHOLDER.sub("", text)

    def context(self, turns: Sequence[Turn]) -> list[Piece]:
        """The text filled in for each user turn, with each earlier answer as a piece of its own, in the
        loss if its turn is.
        """
        instruction = self._instruction
        pieces: list[Piece] = []
        text = self._start
        for turn in turns:
            if turn.role == "system":
                instruction = turn.content
            elif turn.role == "user":
                text += self._filled(instruction, turn.content)
                instruction = ""  # only once
            else:
                answer = self.answer((), turn.content)
                pieces += [Piece(text, in_loss=False), Piece(answer, turn.in_loss)]
                text = "\n"
        return [*pieces, Piece(text, in_loss=False)]

    def answer(self, turns: Sequence[Turn], answer: str) -> str:
        """The answer and the end token; the turns before do not matter."""
        return self._lead + answer + self.end

    def _filled(self, instruction: str, user: str) -> str:
        text = self._text
        if "{instruction}" not in text and instruction:
            text = "{instruction}\n\n" + text
        elif not instruction:
            text = _NO_INSTRUCTION.sub("", text)
        values = {"instruction": instruction, "input": user}
        return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def _after_probe(text: str) -> str:
    """The text after the last probe, without trailing white space."""
    return text.rpartition(_PROBE)[2].rstrip() if _PROBE in text else ""
