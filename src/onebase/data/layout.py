"""How a conversation is laid out as text: by the tokenizer's chat template, or by a plain one.

A layout gives text in pieces. A piece is either context or an assistant's answer to learn, and
every piece is tokenised by itself, so the context is the same tokens in training as in generation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from jinja2 import TemplateError

from onebase.data.dates import PARTS, date_parts, of_moment, writes_date
from onebase.data.ends import ending_token, special_tokens
from onebase.data.example import Turn
from onebase.errors import UsageError
from onebase.language import say

# Neutral between tasks (not every input is a question), and read by base models of either language.
PLAIN = "{instruction}\n\nInput: {input}\nOutput:"
_PLACE = re.compile(r"\{(instruction|input)\}")
_NO_INSTRUCTION = re.compile(r"\{instruction\}\s*")
_PROBE = "0nebase"
_PROBED = [Turn("user", _PROBE), Turn("assistant", _PROBE), Turn("user", _PROBE)]


@dataclass(frozen=True)
class Piece:
    """A stretch of text to tokenise by itself."""

    text: str
    learned: bool


class Layout(Protocol):
    """A way to lay out conversations."""

    end: str
    """The text that is learned as the end of an answer; empty if nothing ends it."""
    ending: str
    """What the layout itself writes after an answer, without the token that is added to it."""
    written: str
    """A conversation as it lays one out: its own text around the turns."""
    dated: bool
    """Whether it writes the date or the time, of its own moment."""

    def context(self, turns: Sequence[Turn]) -> list[Piece]:
        """What stands before the next assistant turn; `turns` ends with a user turn.

        Raises `jinja2.TemplateError` where a chat template refuses these turns.
        """
        ...

    def answer(self, turns: Sequence[Turn], answer: str) -> str:
        """What `answer` adds to the context of `turns`, its end token with it."""
        ...


class ChatLayout:
    """Laid out by the tokenizer's own chat template.

    An assistant turn is what the template adds to the generation prompt, up to its end token. The
    instruction is the system turn unless a conversation brings its own; where the template takes
    no system turn, that text goes before the first user turn, after which comes a blank line. Where
    the template writes the date, it is that of `moment` (None: of the rendering).
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
        self._instruction: str | None = None  # nothing of the user's is in what is written
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
        """Earlier assistant turns are pieces, to learn where the template leaves them as they were and
        they are not context alone."""
        whole = self._render(turns, prompt=True)
        pieces: list[Piece] = []
        at = 0
        asked = False
        for index, turn in enumerate(turns):
            asked = asked or turn.role == "user"
            if turn.role != "assistant" or not asked:  # a greeting answers nothing
                continue
            before = self._render(turns[:index], prompt=True)
            after = self._render(turns[: index + 1], prompt=False)
            answer = self._ended(after[len(before) :].rstrip())
            if not after.startswith(before) or not whole.startswith(before + answer):
                return [Piece(whole, learned=False)]
            pieces += [Piece(before[at:], learned=False), Piece(answer, turn.learned)]
            at = len(before) + len(answer)
        return [*pieces, Piece(whole[at:], learned=False)]

    def answer(self, turns: Sequence[Turn], answer: str) -> str:
        """What the template adds for `answer`; the answer and its end if it rewrites the prompt."""
        before = self._render(turns, prompt=True)
        after = self._render([*turns, Turn("assistant", answer)], prompt=False)
        kept = after.startswith(before)
        added = self._ended(after[len(before) :].rstrip()) if kept else answer + self.ending
        return self._closed(added)

    def _ended(self, added: str) -> str:
        """`added` up to the end: what a template writes after its end token (a new line as a rule, and
        Phi-3's a second token at the end of a conversation) is not learned.
        """
        after = self._written_after
        return added.removesuffix(after) + self.ending if added.endswith(after) else added

    def _closed(self, added: str) -> str:
        """`added` with the tokenizer's end token, unless the template has ended it already."""
        return added if added.endswith(self._closing) else added + self._eos

    def _probe(self) -> str:
        """A conversation as the template writes it, an answer last and an answer before a question."""
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
        """Whether a system turn is accepted, and not quietly left out."""
        self._takes_system = True
        try:
            return _PROBE in self._render([Turn("system", _PROBE), Turn("user", "?")], prompt=True)
        except TemplateError:
            return False


class PlainLayout:
    """Laid out by a text with the place `{input}`, and `{instruction}` where there may be one.

    Every user turn fills the text anew. `lead` stands before an answer, `between` after it.
    A row's own system turn takes the instruction's place. An instruction that the text has no
    place for goes before it, with a blank line.
    """

    def __init__(
        self, tokenizer: Any, instruction: str | None, text: str = PLAIN, *, lead: str = " "
    ) -> None:
        rest = _PLACE.sub("", text)
        if "{input}" not in text or "{" in rest or "}" in rest:
            raise UsageError(
                say(
                    f"The template {text!r} can't be filled in.",
                    f"模板 {text!r} 无法填写。",
                ),
                say(
                    "It needs {input}, may have {instruction}, and no other braces.",
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
        self.written = self._start + _PLACE.sub("", text)

    def context(self, turns: Sequence[Turn]) -> list[Piece]:
        """Each user turn in its place in the text, each earlier answer as a piece, to learn unless it is
        context alone."""
        instruction = self._instruction
        pieces: list[Piece] = []
        text = self._start
        for turn in turns:
            if turn.role == "system":
                instruction = turn.content
            elif turn.role == "user":
                text += self._filled(instruction, turn.content)
                instruction = ""  # said once
            else:
                answer = self.answer((), turn.content)
                pieces += [Piece(text, learned=False), Piece(answer, turn.learned)]
                text = "\n"
        return [*pieces, Piece(text, learned=False)]

    def answer(self, turns: Sequence[Turn], answer: str) -> str:
        """The answer and the end token, whatever the turns before."""
        return self._lead + answer + self.end

    def _filled(self, instruction: str, user: str) -> str:
        text = self._text
        if "{instruction}" not in text and instruction:
            text = "{instruction}\n\n" + text
        elif not instruction:
            text = _NO_INSTRUCTION.sub("", text)
        values = {"instruction": instruction, "input": user}
        return _PLACE.sub(lambda place: values[place[1]], text)


def _after_probe(text: str) -> str:
    """What stands after the last probe, without white space at its end."""
    return text.rpartition(_PROBE)[2].rstrip() if _PROBE in text else ""
