"""The end tokens and stop strings of exported answers: those at which the task itself stops."""

from dataclasses import dataclass

from onebase.data.template import Template
from onebase.language import say
from onebase.model.base import Base
from onebase.model.eos import end_tokens


@dataclass(frozen=True)
class AnswerEnds:
    """The end tokens of an answer, and its stop strings `texts`.

    `eos` is the tokenizer's end token, by default the first one of the generation config; `turn` is the
    token that the template writes after an answer. If one is missing, it equals the other; both are
    None only if no token ends an answer. `tokens` holds all end tokens, `eos` and `turn` first.
    """

    eos: int | None
    turn: int | None
    tokens: tuple[int, ...]
    texts: tuple[str, ...]

    def texts_note(self) -> list[str]:
        """A note on the stop strings; empty if there are none."""
        if not self.texts:
            return []
        listed = ", ".join(repr(text) for text in self.texts)
        return [
            say(
                f"Its answers end with the text {listed}, which is not a single token. Set it as a stop "
                "string in other programs.",
                f"它的回答以文本 {listed} 结束，而该文本不是单个词元。在其他软件中请将其设为停止字符串（stop）。",
            )
        ]


def answer_ends(base: Base, template: Template) -> AnswerEnds:
    """The ends of answers to prompts of `template`, with those of the base's generation config."""
    tokenizer_eos: int | None = base.tokenizer.eos_token_id
    by_template = sorted(template.ends - {tokenizer_eos})
    others = sorted(end_tokens(base, template) - {tokenizer_eos, *by_template})
    candidates = [*([] if tokenizer_eos is None else [tokenizer_eos]), *others, *by_template]
    eos = candidates[0] if candidates else None
    turn = by_template[0] if by_template else eos
    ordered = [*candidates[:1], *by_template, *others]
    return AnswerEnds(eos, turn, tuple(dict.fromkeys(ordered)), template.stops)
