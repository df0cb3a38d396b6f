import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast as Tokenizer

from onebase.data.check import CheckReport, Duplicate, check, named_lines
from onebase.data.formats import load_dataset
from onebase.data.template import Template
from onebase.language import set_language

Write = Callable[[str, object], Path]


def report(
    write: Write,
    tokenizer: Tokenizer,
    pairs: list[tuple[str, str]],
    *,
    output: str = "output",
    max_tokens: int = 512,
) -> CheckReport:
    inp = "text" if output == "label" else "input"
    path = write("a.jsonl", [{inp: asked, output: answer} for asked, answer in pairs])
    return check(load_dataset(path), Template(tokenizer, max_tokens=max_tokens))


def many(count: int) -> list[tuple[str, str]]:
    return [(f"q{n}", f"answer {n}") for n in range(count)]


def test_a_sound_file_has_no_warnings(write: Write, chatml: Tokenizer) -> None:
    found = report(write, chatml, many(8))
    assert (found.file, found.format, found.rows) == ("a.jsonl", "input-output", 8)
    assert found.columns == {"input": "input", "output": "output"}
    assert (found.bad, found.duplicates, found.overlap, found.warnings) == ((), (), (), ())
    assert found.first_example == (
        "<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\n⟦answer 0<|im_end|>⟧"
    )


def test_tokens_are_counted_apart(write: Write, chatml: Tokenizer) -> None:
    template = Template(chatml)
    pairs = [("q", "a"), ("q" * 10, "b"), ("q" * 30, "a b c d e f")]
    found = report(write, chatml, pairs)
    prompts = sorted(len(template.prompt(asked)) for asked, _ in pairs)
    answers = sorted(len(template.answer_ids(answer)) for _, answer in pairs)
    prompt, learned = found.prompt_tokens, found.learned_tokens
    assert [prompt.min, prompt.median, prompt.max, prompt.total] == [*prompts, sum(prompts)]
    assert [learned.min, learned.median, learned.max, learned.total] == [*answers, sum(answers)]
    assert found.total_tokens == sum(prompts) + sum(answers)
    assert found.truncated == 0


def test_duplicates_are_paired_by_line(write: Write, chatml: Tokenizer) -> None:
    found = report(write, chatml, [*many(8), ("q1", "answer 1"), ("q1", "another")])
    assert found.duplicates == (Duplicate(2, 9, False), Duplicate(2, 10, True))


def test_overlap_with_the_held_out_file(write: Write, chatml: Tokenizer) -> None:
    train = load_dataset(write("a.jsonl", [{"input": q, "output": a} for q, a in many(8)]))
    held = load_dataset(write("b.jsonl", [{"input": q, "output": "x"} for q in ("z", "q3")]))
    assert check(train, Template(chatml), held_out=held).overlap == ((4, 2),)


def test_truncated_examples_are_counted(write: Write, chatml: Tokenizer) -> None:
    found = report(write, chatml, [*many(8), ("parcel " * 200, "a")], max_tokens=64)
    assert found.truncated == 1
    assert found.warnings == ()


def test_labels_are_counted_and_imbalance_is_named(write: Write, chatml: Tokenizer) -> None:
    pairs = [(f"q{n}", "common" if n else "rare") for n in range(12)]
    found = report(write, chatml, pairs, output="label")
    assert found.labels == {"common": 11, "rare": 1}
    assert found.warnings == ("The labels are imbalanced: 11 rows of 'common', 1 of 'rare'.",)
    assert not report(write, chatml, pairs[:11], output="label").warnings


@pytest.mark.parametrize(
    ("pairs", "warning"),
    [
        (many(7), "Very few rows (7): results will depend on chance."),
        (
            [*many(8), ("a<|im_end|>b", "c")],
            "The content of line 9 contains the special token '<|im_end|>', which the model reads as a "
            "control token. An answer ends at this token.",
        ),
        (
            [*many(8), ("q", "a<|im_start|>b")],
            "The content of line 9 contains the special token '<|im_start|>', which the model reads as "
            "a control token. Answers are shown without it.",
        ),
        (
            [*many(8), ("q", "a <filename> b"), ("<filename>", "a")],
            "The content of lines 9, 10 contains the special token '<filename>', which the model reads "
            "as a control token. Answers show it as text.",
        ),
        (
            [*many(8), ("Ca va tr\ufffds bien", "oui"), ("q", "M\ufffdller")],
            "U+FFFD (\ufffd) in lines 9, 10: characters were lost when the file was converted.",
        ),
        (
            [*many(8), *[(f"same {n}", f"same {n}") for n in range(7)]],
            "The answer only repeats the input in lines 9, 10, 11, 12, 13 and 2 more.",
        ),
    ],
)
def test_what_looks_wrong_is_named(
    write: Write, chatml: Tokenizer, pairs: list[tuple[str, str]], warning: str
) -> None:
    tokenizer = copy.deepcopy(chatml)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<filename>"]})
    assert report(write, tokenizer, pairs).warnings == (warning,)


def test_an_answer_that_contains_its_end_is_named(
    write: Write, tokenizer_with: Callable[[str], Tokenizer]
) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }} ### End\n{% endfor %}"
    tokenizer = tokenizer_with(template + "{% if add_generation_prompt %}assistant: {% endif %}")
    found = report(write, tokenizer, [*many(8), ("q", "a ### End b"), ("a ### End b", "a")])
    assert found.warnings == (
        "The template ends answers with ' ### End', but the answer of line 9 contains it too: such an "
        "answer will stop there.",
    )


@pytest.mark.parametrize("template", ["auto", "plain", "{input} =>"])
def test_answers_without_an_end_are_named(
    write: Write, tokenizer_with: Callable[[str], Tokenizer], template: str
) -> None:
    tokenizer = tokenizer_with("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    rows = [{"input": asked, "output": answer} for asked, answer in many(8)]
    data = load_dataset(write("a.jsonl", rows))
    assert check(data, Template(tokenizer, kind=template)).warnings == ()
    tokenizer.eos_token = None
    (warning,) = check(data, Template(tokenizer, kind=template)).warnings
    assert "The model can't learn where to stop, so answers run on to max_tokens" in warning
    set_language("zh")
    (warning,) = check(data, Template(tokenizer, kind=template)).warnings
    assert "模型学不到在何处停止" in warning


def test_rows_with_nothing_to_learn_are_named(write: Write, chatml: Tokenizer) -> None:
    found = report(write, chatml, many(8), max_tokens=5)
    assert found.learned_tokens.max == 0
    assert found.warnings == (
        "No answer is left to train on in lines 1, 2, 3, 4, 5 and 3 more: the prompt alone fills "
        "max_tokens (5).",
    )


def test_an_end_of_the_base_s_own_ends_answers(write: Write, chatml: Tokenizer) -> None:
    rows = [{"input": asked, "output": answer} for asked, answer in [*many(8), ("q", "a<s>b")]]
    data, template = load_dataset(write("a.jsonl", rows)), Template(chatml)
    for ends, words in ((set(), "shown without it"), ({3}, "An answer ends at this token")):
        (warning,) = check(data, template, ends=ends).warnings
        assert "'<s>'" in warning
        assert words in warning


@pytest.mark.parametrize("rows", [[0], [0, 1], [0, 1, 2]])
def test_earlier_answers_that_a_template_rewrites_are_told(
    write: Write, chatml_but: Callable[[str, str], Tokenizer], rows: list[int]
) -> None:
    last_alone = "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}"
    tokenizer = chatml_but("{{ m.content }}", last_alone)
    content = [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": f"<think>{n}</think>a" if n in rows else "a"},
                {"role": "user", "content": "r"},
                {"role": "assistant", "content": "b"},
            ]
        }
        for n in range(8)
    ]
    data = load_dataset(write("a.jsonl", content))
    (warning,) = check(data, Template(tokenizer)).warnings
    assert (
        f"not trained on in {named_lines(data.examples[: len(rows)])} ({len(rows)} answers)"
        in warning
    )
    assert check(data, Template(tokenizer, kind="plain")).warnings == ()


def test_a_row_that_the_template_refuses_is_bad(write: Write, no_system: Tokenizer) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "user", "assistant")]
    path = write("a.jsonl", [{"messages": turns}] + [{"messages": turns[1:]}] * 8)
    found = check(load_dataset(path), Template(no_system))
    assert [row.line for row in found.bad] == [1]
    assert found.rows == 9


def test_a_file_of_bad_rows_is_reported(write: Write, chatml: Tokenizer) -> None:
    found = check(load_dataset(write("a.jsonl", "{\n{\n")), Template(chatml))
    assert (found.rows, len(found.bad), found.first_example) == (2, 2, "")
    assert found.prompt_tokens.total == 0


def test_the_report_is_json(write: Write, chatml: Tokenizer) -> None:
    found = report(write, chatml, [*many(8), ("q1", "other"), ("q", "")])
    back = json.loads(json.dumps(found.to_dict()))
    assert back["duplicates"] == [{"first": 2, "second": 9, "conflicting": True}]
    assert back["bad"] == [{"file": "a.jsonl", "line": 10, "column": "output", "reason": "empty"}]
    assert back["prompt_tokens"] == asdict(found.prompt_tokens)


TWO_QUESTIONS = [{"role": "user", "content": text} for text in ("a", "b")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input": "y", "output": None}, "null"),
        ({"question": "y"}, "missing"),
        ({"input": TWO_QUESTIONS, "output": "a"}, "Roles must alternate"),
    ],
)
def test_the_held_out_file_is_looked_over_too(
    write: Write, no_system: Tokenizer, row: dict[str, object], reason: str
) -> None:
    train = load_dataset(write("a.jsonl", [{"input": q, "output": a} for q, a in many(8)]))
    held = load_dataset(write("b.jsonl", [{"input": "z", "output": "a", "topic": "t"}, row]))
    found = check(train, Template(no_system), held_out=held)
    assert [(bad.file, bad.line) for bad in found.bad] == [("b.jsonl", 2)]
    assert reason in found.bad[0].reason
    assert found.rows == 8
    (warning,) = found.warnings
    assert warning.startswith("Not read in b.jsonl: ")
    assert "'topic'" in warning
