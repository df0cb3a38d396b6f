import json
import time
from collections.abc import Callable
from datetime import datetime

import pytest
from tests.data.conftest import CHATML
from transformers import PreTrainedTokenizerFast as Tokenizer

from onebase.data.example import Example, Role, Turn
from onebase.data.template import Rendered, Template
from onebase.errors import DataError, UsageError

Build = Callable[..., Tokenizer]
ROLES: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant"}


def example(*said: str) -> Example:
    """`example("u:Hello", "a:Hi")`."""
    turns = tuple(Turn(ROLES[text[0]], text[2:]) for text in said)
    return Example(turns, "a.jsonl", 7)


TALK = example("u:Where is it?", "a:Where is what?", "u:My parcel.", "a:On Monday.")
PAIR = example("u:Where is my parcel?", "a:It left the depot.")
CHINESE = example("u:类型#上衣*颜色#白色", "a:白色的衣身十分百搭。")


def learned_text(tokenizer: Tokenizer, rendered: Rendered) -> str:
    ids = [
        token for token, learned in zip(rendered.ids, rendered.loss_mask, strict=True) if learned
    ]
    return str(tokenizer.decode(ids))


@pytest.fixture(params=["chatml", "no_system", "base", "base_with_bos"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(str(request.param))


@pytest.mark.parametrize("kind", ["auto", "plain", "### {instruction}\n{input} =>"])
@pytest.mark.parametrize("instruction", [None, "Answer as the shop's support desk."])
@pytest.mark.parametrize("said", [PAIR, TALK, CHINESE, example("s:Be brief.", "u:q", "a:b")])
def test_training_sees_exactly_the_prompt_of_generation(
    tokenizer: Tokenizer, kind: str, instruction: str | None, said: Example
) -> None:
    template = Template(tokenizer, kind=kind, instruction=instruction)
    rendered = template.example(said)
    prompt = template.prompt(said.turns[:-1])
    answer = template.answer_ids(said.answer)
    assert list(rendered.ids) == prompt + answer
    assert rendered.loss_mask[len(prompt) - 1 :] == (False, *[True] * len(answer))
    assert answer[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(template.end)
    assert not rendered.truncated
    # The pieces spell the text: no character is lost between them.
    assert tokenizer.decode(prompt) == template.prompt_text(said.turns[:-1])
    assert template.marked(said).startswith(
        template.prompt_text(said.turns[:-1]).partition("Where is what?")[0].rstrip("⟦ ")
    )


def test_a_user_s_text_is_a_user_turn(tokenizer: Tokenizer) -> None:
    template = Template(tokenizer, instruction="Be brief.")
    assert template.prompt("Where?") == template.prompt([Turn("user", "Where?")])


def test_chat_marks_what_is_learned(chatml: Tokenizer) -> None:
    template = Template(chatml, instruction="Be brief.")
    assert template.kind == "chat"
    assert template.marked(TALK) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhere is it?<|im_end|>\n"
        "<|im_start|>assistant\n⟦Where is what?<|im_end|>⟧\n"
        "<|im_start|>user\nMy parcel.<|im_end|>\n"
        "<|im_start|>assistant\n⟦On Monday.<|im_end|>⟧"
    )
    assert learned_text(chatml, template.example(TALK)) == (
        "Where is what?<|im_end|>On Monday.<|im_end|>"
    )


def test_a_row_s_own_system_turn_comes_before_the_instruction(chatml: Tokenizer) -> None:
    text = Template(chatml, instruction="Be brief.").prompt_text(
        [Turn("system", "Be long."), Turn("user", "?")]
    )
    assert "Be long." in text
    assert "Be brief." not in text


def test_without_a_system_role_the_instruction_leads_the_first_user_turn(
    no_system: Tokenizer,
) -> None:
    template = Template(no_system, instruction="Be brief.")
    assert template.marked(TALK).startswith(
        "<|im_start|>user\nBe brief.\n\nWhere is it?<|im_end|>\n<|im_start|>assistant\n⟦"
    )
    assert "Be kind.\n\nq" in template.prompt_text([Turn("system", "Be kind."), Turn("user", "q")])


def test_a_system_turn_that_a_template_leaves_out_is_not_lost(chatml_but: Build) -> None:
    silent = chatml_but("m in messages %}", "m in messages if m.role != 'system' %}")
    text = Template(silent, instruction="Be brief.").prompt_text("q")
    assert "user\nBe brief.\n\nq" in text


def test_only_the_last_turn_is_learned_where_the_template_rewrites_the_past(
    chatml_but: Build,
) -> None:
    forgetful = chatml_but(
        "{{ m.content }}",
        "{% if m.role == 'assistant' and not loop.last %}...{% else %}{{ m.content }}{% endif %}",
    )
    template = Template(forgetful)
    rendered = template.example(TALK)
    assert learned_text(forgetful, rendered) == "On Monday.<|im_end|>"
    prompt = template.prompt(TALK.turns[:-1])
    assert list(rendered.ids[: len(prompt)]) == prompt
    assert "assistant\n...<|im_end|>" in template.prompt_text(TALK.turns[:-1])


def test_a_template_that_rewrites_the_prompt_falls_back_to_the_bare_answer(
    chatml_but: Build,
) -> None:
    template = Template(chatml_but("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"))
    assert template.marked(PAIR).endswith("assistant\n<think>\n⟦It left the depot.<|im_end|>⟧")
    assert list(template.example(PAIR).ids) == template.prompt(PAIR.input) + template.answer_ids(
        PAIR.answer
    )


def test_what_a_template_adds_before_the_answer_is_learned_too(chatml_but: Build) -> None:
    thinking = chatml_but(
        "{{ m.content }}",
        "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}",
    )
    template = Template(thinking)
    assert template.marked(PAIR).endswith("⟦<think></think>It left the depot.<|im_end|>⟧")
    assert template.end == "<|im_end|>"


def test_an_end_token_is_added_where_the_template_has_none(tokenizer_with: Build) -> None:
    bare = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    template = Template(tokenizer_with(bare))
    assert template.marked(PAIR) == (
        "user: Where is my parcel?\nassistant: ⟦It left the depot.<|im_end|>⟧"
    )


def test_plain_layout(base: Tokenizer, base_with_bos: Tokenizer) -> None:
    assert Template(base, instruction="Answer.").marked(TALK) == (
        "Answer.\n\nInput: Where is it?\nOutput:⟦ Where is what?<|endoftext|>⟧"
        "\nInput: My parcel.\nOutput:⟦ On Monday.<|endoftext|>⟧"
    )
    assert Template(base).prompt_text("q") == "Input: q\nOutput:"
    prompt = Template(base_with_bos).prompt("q")
    assert prompt.count(base_with_bos.bos_token_id) == 1
    assert prompt[0] == base_with_bos.bos_token_id


def test_custom_layout(base: Tokenizer) -> None:
    template = Template(base, kind="[{instruction}] {input} => ", instruction="Sum {input}")
    assert template.marked(example("u:{instruction} {x}", "a:b")) == (
        "[Sum {input}] {instruction} {x} => ⟦b<|endoftext|>⟧"
    )
    bare = Template(base, kind="Q: {input} A: ", instruction="Be brief.")
    assert bare.prompt_text("q") == "Be brief.\n\nQ: q A: "


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "chat"}, "no chat template"),
        ({"kind": "chta"}, r"Unknown template: 'chta'\. Did you mean 'chat'\?"),
        ({"kind": "{inptu}"}, r"'\{inptu\}' is not valid\. It must contain \{input\}"),
        ({"kind": "{input} {context}"}, "no other braces"),
        ({"kind": "{instruction}"}, r"must contain \{input\}"),
        ({"max_tokens": 1}, "max_tokens=1 is too small"),
    ],
)
def test_wrong_settings_are_named(
    base: Tokenizer, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Template.from_config(base, settings)


def test_an_unknown_setting_is_an_error(base: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"'instructions'.*Did you mean 'instruction'"):
        Template.from_config(base, {"instructions": "x"})


def test_the_config_builds_the_template_again(chatml: Tokenizer) -> None:
    template = Template(chatml, instruction="Be brief.", max_tokens=64)
    again = Template.from_config(chatml, json.loads(json.dumps(template.config())))
    assert again.config() == template.config()
    assert again.prompt("q") == template.prompt("q")


def test_turns_that_the_template_refuses(no_system: Tokenizer) -> None:
    template = Template(no_system)
    with pytest.raises(DataError, match=r"a\.jsonl:7: the chat template refuses.*must alternate"):
        template.example(example("u:a", "u:b", "a:c"))
    with pytest.raises(UsageError, match="must alternate"):
        template.prompt([Turn("user", "a"), Turn("user", "b")])


@pytest.mark.parametrize("said", [[], [Turn("user", "q"), Turn("assistant", "a")]])
def test_a_prompt_ends_with_a_user_turn(chatml: Tokenizer, said: list[Turn]) -> None:
    with pytest.raises(UsageError, match="The last turn is not the user's"):
        Template(chatml).prompt(said)


def test_a_greeting_before_the_first_question_is_context(chatml: Tokenizer) -> None:
    prompt = Template(chatml).prompt([Turn("assistant", "Welcome!"), Turn("user", "q")])
    assert "assistant\nWelcome!<|im_end|>" in chatml.decode(prompt)


@pytest.mark.parametrize("word", ["parcel ", "白色", "😀"])
@pytest.mark.parametrize("max_tokens", [40, 64, 101])
def test_a_long_question_is_cut_at_its_end(
    tokenizer: Tokenizer, word: str, max_tokens: int
) -> None:
    long = example(f"u:{word * 300}", "a:It left the depot.")
    template = Template(tokenizer, max_tokens=max_tokens)
    rendered = template.example(long)
    assert rendered.truncated
    assert max_tokens - 4 <= len(rendered.ids) <= max_tokens
    answer = template.answer_ids("It left the depot.")
    assert list(rendered.ids[-len(answer) :]) == answer
    text = template.marked(long)
    start, end = template.prompt_text("@@").split("@@")
    kept = text.removeprefix(start).partition(end + "⟦")[0]
    assert kept
    assert (word * 300).startswith(kept)


def test_only_the_last_question_is_cut(chatml: Tokenizer) -> None:
    long = example("u:first", "a:one", "u:" + "second " * 200, "a:two")
    text = Template(chatml, max_tokens=64).marked(long)
    assert text.startswith("<|im_start|>user\nfirst<|im_end|>\n<|im_start|>assistant\n⟦one")
    assert text.endswith("second<|im_end|>\n<|im_start|>assistant\n⟦two<|im_end|>⟧")


def test_a_long_answer_is_cut_and_its_end_dropped(tokenizer: Tokenizer) -> None:
    template = Template(tokenizer, max_tokens=64)
    short = "Where is my parcel?"
    rendered = template.example(example("u:" + short, "a:" + "depot " * 300))
    prompt = template.prompt(short)
    assert rendered.truncated
    assert len(rendered.ids) == 64
    assert list(rendered.ids[: len(prompt)]) == prompt
    assert tokenizer.eos_token_id not in rendered.ids[len(prompt) :]
    assert all(rendered.loss_mask[len(prompt) :])


def test_beside_a_long_answer_a_quarter_is_left_to_the_question(chatml: Tokenizer) -> None:
    long = example("u:" + "parcel " * 300, "a:" + "depot " * 300)
    rendered = Template(chatml, max_tokens=200).example(long)
    header = len(Template(chatml).prompt(""))
    assert len(rendered.ids) == 200
    assert header + 45 <= rendered.loss_mask.index(True) <= header + 50


def test_a_layout_that_alone_is_too_long_is_cut(chatml: Tokenizer) -> None:
    template = Template(chatml, instruction="Be brief. " * 100, max_tokens=16)
    rendered = template.example(PAIR)
    assert len(rendered.ids) == 16
    assert rendered.truncated
    assert not any(rendered.loss_mask)


def test_text_that_looks_like_a_control_token_is_left_as_it_is(chatml: Tokenizer) -> None:
    prompt = Template(chatml).prompt("a<|im_end|>b")
    assert prompt.count(chatml.convert_tokens_to_ids("<|im_end|>")) == 2


def test_rendering_is_fast(chatml: Tokenizer) -> None:
    template = Template(chatml, instruction="Be brief.")
    template.example(PAIR)
    best = min(_seconds(template) for _ in range(5))
    assert best / 50 < 0.003  # typically 0.3 ms; the bound is loose for a busy machine


def _seconds(template: Template) -> float:
    start = time.perf_counter()
    for _ in range(50):
        template.example(PAIR)
    return time.perf_counter() - start


@pytest.mark.parametrize("kind", ["chat", "plain", "Q: {input}\nA:"])
@pytest.mark.parametrize("text", ["a\ufdd0b", "\ufdd0a", "a\ufdd0"])
def test_a_noncharacter_is_dropped_only_where_places_are_marked(
    chatml: Tokenizer, kind: str, text: str
) -> None:
    row = Example((Turn("user", text), Turn("assistant", text)), "a.jsonl", 1)
    plain = chatml.decode(Template(chatml, kind=kind).example(row).ids)
    assert plain.count(text) == 2
    placed = Template(chatml, kind=kind, instruction="{v:2}")
    assert "\ufdd0" not in chatml.decode([id_ for id_ in placed.example(row).ids if id_ >= 0])


@pytest.mark.parametrize(
    "form",
    [
        "%d %b %Y",
        "%Y-%m-%d %H:%M:%S",
        "%A, %B %-d",
        "%j/%U %%",
        "today",
        "%Y年%m月%d日",
        "%I %p",
        "%C",
        "%%d %%Y",
        "100%%",
    ],
)
def test_a_template_writes_the_date_of_a_moment(form: str, tokenizer_with: Build) -> None:
    """As transformers' own function would have then, and no other text changes."""
    moment = datetime(2026, 3, 5, 17, 4, 9)
    own = f"  {{{{ strftime_now('{form}') }}}}\n{{% set f = '{form}' %}}{{{{ strftime_now(f) }}}}\n"
    dated = tokenizer_with(own + CHATML)
    template = Template(dated, moment=moment)
    assert template.dated
    written = moment.strftime(form)
    plain = Template(tokenizer_with(f"  {written}\n{written}\n" + CHATML))
    assert template.prompt_text("q") == plain.prompt_text("q")
    assert template.marked(TALK) == plain.marked(TALK)
    later = template.at(datetime(2027, 1, 1))
    assert later.prompt_text("q") == template.prompt_text("q").replace(
        written, datetime(2027, 1, 1).strftime(form)
    )
    assert not Template(dated).dated
    assert not plain.at(moment).dated
