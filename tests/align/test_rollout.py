"""Where a policy's answers end: where training taught it, whatever the base calls its end."""

from collections.abc import Callable

import pytest

from onebase.adapters.methods import build_adapter
from onebase.align.rewards import Prompt
from onebase.align.rollout import Rollout, roll_out
from onebase.data.example import Turn
from onebase.data.template import Template
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError
from onebase.model.base import Base

START, END = 1, 2
LENGTH = 80


def base_ending(base: Base, ending: str, eos: str | None, named: int | list[int] | None) -> Base:
    """`base` with another text after a turn, another end token, other ends in its config."""
    base.tokenizer.chat_template = base.tokenizer.chat_template.replace("<|im_end|>", ending)
    base.tokenizer.eos_token = eos
    base.model.generation_config.eos_token_id = named
    return base


def drawn(base: Base) -> list[Rollout]:
    """Forty answers, drawn from nearly the uniform distribution."""
    template = Template(base.tokenizer)
    policy = build_adapter(base, "lora", {}, init_text="", seed=0)
    turns = (Turn("user", "where is it"),)
    prompt = Prompt(turns, tuple(template.prompt(turns)), {}, "f", 1)
    sampling = Sampling(max_tokens=LENGTH, temperature=20.0, seed=3)
    return roll_out(base, policy, template, [prompt] * 40, sampling)


@pytest.mark.parametrize(
    ("ending", "eos", "named", "ends"),
    [
        ("<|im_end|>", "<|im_start|>", None, {START, END}),
        ("<|im_end|>", None, None, {END}),
        ("<|im_end|>", "<|im_end|>", [7, 8], {END, 7, 8}),
        ("", "<|im_start|>", 9, {START, 9}),
    ],
)
def test_an_answer_ends_at_every_end_and_nowhere_else(
    ending: str,
    eos: str | None,
    named: int | list[int] | None,
    ends: set[int],
    make_base: Callable[..., Base],
) -> None:
    rollouts = drawn(base_ending(make_base(), ending, eos, named))
    ended = [item for item in rollouts if item.ended]
    assert {item.tokens.answer[-1] for item in ended} == ends
    for item in rollouts:
        assert not ends & set(item.tokens.answer[:-1])
        assert item.ended == (item.tokens.answer[-1] in ends)
        assert item.ended or len(item.tokens.answer) == LENGTH


def test_an_answer_ends_at_a_text_that_the_template_ends_turns_with(
    make_base: Callable[..., Base],
) -> None:
    base = base_ending(make_base(), "#", None, None)
    rollouts = drawn(base)
    ended = [item for item in rollouts if item.ended]
    assert 0 < len(ended) < len(rollouts)
    for item in rollouts:
        said = base.tokenizer.decode(item.tokens.answer)
        assert item.ended == ("#" in said)
        assert "#" not in item.text
        if item.ended:  # the end is among the tokens that are learned from
            assert said.index("#") >= len(base.tokenizer.decode(item.tokens.answer[:-1]))
            assert len(item.logprobs) == len(item.tokens.answer)


def test_without_an_end_answers_go_on_to_their_limit(make_base: Callable[..., Base]) -> None:
    rollouts = drawn(base_ending(make_base(), "", None, None))
    assert {(item.ended, len(item.tokens.answer)) for item in rollouts} == {(False, LENGTH)}


@pytest.mark.parametrize("method", ["lora", "prompt-tuning", "p-tuning-v2"])
def test_an_answer_ends_where_the_context_does(method: str, make_base: Callable[..., Base]) -> None:
    """Virtual tokens and a prefix take their part of it."""
    base = base_ending(make_base(), "", None, None)
    template = Template(base.tokenizer)
    settings = {} if method == "lora" else {"virtual_tokens": 6}
    policy = build_adapter(base, method, settings, init_text="hello", seed=0)
    prompt = Prompt((Turn("user", "q"),), tuple(template.prompt("q")), {}, "f", 1)
    before = len(prompt.ids) + policy.before_text
    base.model.config.max_position_embeddings = before + 3
    sampling = Sampling(max_tokens=9, temperature=1.0, seed=3)
    (item,) = roll_out(base, policy, template, [prompt], sampling)
    assert len(item.tokens.answer) == 3
    base.model.config.max_position_embeddings = before
    with pytest.raises(UsageError, match="too many for"):
        roll_out(base, policy, template, [prompt], sampling)
