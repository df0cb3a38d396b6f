"""Where answers of an export end elsewhere: at the tokens where the task itself stops."""

from dataclasses import dataclass

from onebase.data.template import Template
from onebase.language import say
from onebase.model.base import Base
from onebase.model.ends import end_tokens


@dataclass(frozen=True)
class AnswerEnds:
    """The token ids that end an answer, and the `texts` that do.

    `eos` is the tokenizer's own end, or else the generation config's first; `turn` is what the template
    writes after an answer. Without another, each is the other. Both are None only where no token ends an answer. `tokens` holds all of
    them, `eos` and `turn` first.
    """

    eos: int | None
    turn: int | None
    tokens: tuple[int, ...]
    texts: tuple[str, ...]

    def texts_note(self) -> list[str]:
        """What the user must do about ends that are no single token; nothing where there are none."""
        if not self.texts:
            return []
        listed = ", ".join(repr(text) for text in self.texts)
        return [
            say(
                f"Its answers end with the text {listed}, which is no single token: give it elsewhere "
                "as a stop string.",
                f"它的回答以文本 {listed} 结束，而该文本不是单个词元：在其他软件中请将其设为停止字符串（stop）。",
            )
        ]


def answer_ends(base: Base, template: Template) -> AnswerEnds:
    """The ends of answers that `base` gives to prompts of `template`, its generation config's too."""
    own: int | None = base.tokenizer.eos_token_id
    by_template = sorted(template.ends - {own})
    others = sorted(end_tokens(base, template) - {own, *by_template})
    candidates = [*([] if own is None else [own]), *others, *by_template]
    eos = candidates[0] if candidates else None
    turn = by_template[0] if by_template else eos
    ordered = [*candidates[:1], *by_template, *others]
    return AnswerEnds(eos, turn, tuple(dict.fromkeys(ordered)), template.stops)
