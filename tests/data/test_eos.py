from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast as Tokenizer

from onebase.data.example import Example, Turn
from onebase.data.template import Template

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
TAIL = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SPECIAL = {"additional_special_tokens": ["<end_of_turn>", "<filename>"]}
Build = Callable[..., Tokenizer]


def example(*said: str) -> Example:
    turns = tuple(Turn("user" if at % 2 == 0 else "assistant", x) for at, x in enumerate(said))
    return Example(turns, "a.jsonl", 7)


@pytest.fixture
def tokenizer_ending(tokenizer_with: Build) -> Build:
    """A tokenizer whose chat template writes a text after every turn, and an end token or none."""

    def build(ending: str, eos: str | None = "<|endoftext|>", head: str = HEAD) -> Tokenizer:
        tokenizer = tokenizer_with(head + ending + TAIL)
        tokenizer.add_special_tokens(SPECIAL)
        tokenizer.add_tokens(["</turn>"])  # added, but not special
        tokenizer.eos_token = eos
        return tokenizer

    return build


def texts_of(tokenizer: Tokenizer, ids: frozenset[int]) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(sorted(ids)))


@pytest.mark.parametrize(
    ("ending", "eos", "learned", "ends", "stops"),
    [
        ("<|im_end|>\n", "<|im_end|>", "<|im_end|>", {"<|im_end|>"}, ()),
        (
            "<end_of_turn>\n",
            "<|endoftext|>",
            "<end_of_turn>",
            {"<end_of_turn>", "<|endoftext|>"},
            (),
        ),
        ("<end_of_turn>", None, "<end_of_turn>", {"<end_of_turn>"}, ()),
        # Two tokens: the second is never reached.
        (
            "<|im_end|>\n<|endoftext|>",
            "<|endoftext|>",
            "<|im_end|>",
            {"<|im_end|>", "<|endoftext|>"},
            (),
        ),
        # Text before the token is a part of the end, and no part of the answer.
        (" <|im_end|>", "<|im_end|>", " <|im_end|>", {"<|im_end|>"}, (" <|im_end|>",)),
        ("]<|im_end|>", "<|im_end|>", "]<|im_end|>", {"<|im_end|>"}, ("]<|im_end|>",)),
        # A text: the tokenizer's own end is learned after it.
        (
            "\n### End\n",
            "<|endoftext|>",
            "\n### End<|endoftext|>",
            {"<|endoftext|>"},
            ("\n### End",),
        ),
        ("</s>", None, "</s>", set(), ("</s>",)),
        ("</turn>\n", "<|endoftext|>", "</turn>", {"</turn>", "<|endoftext|>"}, ()),
        # An added token that is not special may stand in an answer too.
        (
            "x</turn>\n",
            "<|endoftext|>",
            "x</turn><|endoftext|>",
            {"<|endoftext|>"},
            ("x</turn>",),
        ),
        # White space alone is no end.
        ("\n\n", "<|endoftext|>", "<|endoftext|>", {"<|endoftext|>"}, ()),
        ("\n\n", None, "", set(), ()),
        ("", None, "", set(), ()),
    ],
)
def test_what_is_learned_as_the_end_is_what_ends(
    tokenizer_ending: Build,
    ending: str,
    eos: str | None,
    learned: str,
    ends: set[str],
    stops: tuple[str, ...],
) -> None:
    tokenizer = tokenizer_ending(ending, eos)
    template = Template(tokenizer)
    assert texts_of(tokenizer, template.ends) == ends
    assert template.stops == stops
    assert template.end == learned.strip()
    assert template.marked(example("q", "a")).endswith(f"⟦a{learned}⟧")
    answer = template.answer_ids("a")
    assert list(template.example(example("q", "a")).ids)[-len(answer) :] == answer
    assert tokenizer.decode(answer) == "a" + learned


@pytest.mark.parametrize(
    "last", ["", "{% if loop.last and not add_generation_prompt %}<e>{% endif %}"]
)
def test_earlier_answers_have_the_same_end(tokenizer_ending: Build, last: str) -> None:
    """Also where a conversation ends with a token of its own, as Phi-3's do."""
    tokenizer = tokenizer_ending("<end_of_turn>\n" + last.replace("<e>", "<|endoftext|>"))
    marked = Template(tokenizer).marked(example("q", "a", "q", "b"))
    assert marked.count("<end_of_turn>⟧") == 2


def test_a_rewritten_prompt_is_answered_with_the_template_s_end(tokenizer_ending: Build) -> None:
    tokenizer = tokenizer_ending("<end_of_turn>\n")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
    )
    template = Template(tokenizer)
    assert template.marked(example("q", "a")).endswith("<think>\n⟦a<end_of_turn>⟧")


@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_special_token_at_the_end_of_an_answer_does_not_end_it(
    tokenizer_ending: Build, ending: str
) -> None:
    template = Template(tokenizer_ending(ending))
    assert template.marked(example("q", "see <filename>")).endswith("⟦see <filename><|endoftext|>⟧")


def test_what_an_answer_is_shown_without(tokenizer_ending: Build) -> None:
    tokenizer = tokenizer_ending("<end_of_turn>\n")
    tokenizer.pad_token = "<|im_end|>"
    template = Template(tokenizer, instruction="Name the <filename>.")
    shown_without = {"<s>", "<|endoftext|>", "<|im_end|>", "<end_of_turn>", "<|im_start|>"}
    assert texts_of(tokenizer, template.hidden) == shown_without
    assert "<filename>" in template.special_tokens


def test_a_text_of_one_s_own_ends_with_the_tokenizer_s_end(tokenizer_ending: Build) -> None:
    tokenizer = tokenizer_ending("<end_of_turn>\n")
    for kind in ("plain", "<|im_start|>{input}<|im_end|>"):
        template = Template(tokenizer, kind=kind, instruction="<filename>")
        assert texts_of(tokenizer, template.ends) == {"<|endoftext|>"}
        assert template.stops == ()
        assert template.end == "<|endoftext|>"
        written = {"<|im_start|>", "<|im_end|>"} if "{" in kind else set()
        assert texts_of(tokenizer, template.hidden) == {"<s>", "<|endoftext|>"} | written


def test_without_an_end_token_a_text_of_one_s_own_has_no_end(tokenizer_ending: Build) -> None:
    template = Template(tokenizer_ending("<|im_end|>", None), kind="plain")
    assert (template.ends, template.stops, template.end) == (frozenset(), (), "")
    assert template.marked(example("q", "a")).endswith("⟦ a⟧")
