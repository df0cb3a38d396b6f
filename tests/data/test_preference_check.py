"""The report on a preference file, against values counted by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast as Tokenizer

from onebase.data.check import Spread
from onebase.data.preference_check import PreferenceReport, Ratings, Repeat, check_preferences
from onebase.data.preferences import load_preferences
from onebase.data.refused_rows import rendered_preferences
from onebase.data.template import Template

Write = Callable[[str, object], Path]


def pair(number: int, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": f"q{number}", "chosen": chosen, "rejected": rejected}


# As many pairs with the longer answer chosen as with the shorter.
PAIRS = [pair(n, "yes, gladly" if n % 2 else "yes", "no, never") for n in range(10)]


def report(
    write: Write, tokenizer: Tokenizer, rows: list[Any], held: list[Any] | None = None, **how: Any
) -> PreferenceReport:
    data = load_preferences(write("p.jsonl", rows))
    held_out = load_preferences(write("h.jsonl", held)) if held else None
    return check_preferences(data, Template(tokenizer, **how), held_out=held_out)


def test_sound_pairs(write: Write, chatml: Tokenizer) -> None:
    found = report(write, chatml, PAIRS)
    template = Template(chatml)
    answers = [
        len(template.answer_ids(row[key])) for row in PAIRS for key in ("chosen", "rejected")
    ]
    prompts = [len(template.prompt(row["prompt"])) for row in PAIRS for _ in range(2)]
    assert (found.file, found.kind, found.rows, found.bad) == ("p.jsonl", "pairs", 10, ())
    assert found.answer_tokens == Spread.of(answers)
    assert found.prompt_tokens == Spread.of(prompts)
    assert found.total_tokens == sum(answers) + sum(prompts)
    longer = [answers[at] > answers[at + 1] for at in range(0, 20, 2)]
    assert found.longer_chosen == sum(longer) / 10
    assert (found.ratings, found.repeats, found.overlap) == (None, (), ())
    assert (found.warnings, found.truncated) == ((), 0)
    chosen, rejected = found.first_example.split("\n--- rejected ---\n")
    assert chosen.endswith("⟦yes<|im_end|>⟧")
    assert rejected.endswith("⟦no, never<|im_end|>⟧")


def test_repeats_and_contradictions(write: Write, chatml: Tokenizer) -> None:
    again = [PAIRS[3], pair(4, "no, never", "yes"), pair(4, "yes", "another")]
    found = report(write, chatml, [*PAIRS, *again])
    assert found.repeats == (Repeat(4, 11, contradicting=False), Repeat(5, 12, contradicting=True))
    judged = [{"prompt": "q", "completion": "a", "label": label} for label in (True, True, False)]
    found = report(write, chatml, judged)
    assert found.repeats == (Repeat(1, 2, contradicting=False), Repeat(1, 3, contradicting=True))


def test_questions_in_both_files(write: Write, chatml: Tokenizer) -> None:
    found = report(write, chatml, PAIRS, [pair(20, "a", "b"), pair(7, "c", "d")])
    assert found.overlap == ((8, 2),)


def test_ratings(write: Write, chatml: Tokenizer) -> None:
    rows = [{"text": f"text {n}", "rating": n % 4} for n in range(10)]
    found = report(write, chatml, rows)
    assert found.ratings == Ratings(0, 1.3, 3, 4)
    assert found.longer_chosen is None
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        (PAIRS[:3], "Very few rows (3)"),
        ([pair(n, "yes, gladly", "no") for n in range(9)], "longer in 100% of the pairs"),
        ([pair(n, "no", "yes, gladly") for n in range(9)], "shorter in 100% of the pairs"),
        ([{"text": f"{n}", "rating": 2} for n in range(9)], "the same rating, 2"),
        (
            [{"prompt": f"{n}", "completion": "a", "label": n > 0} for n in range(12)],
            "92% of the answers are good",
        ),
        (
            [*PAIRS, pair(11, "a <|im_start|> b", "b")],
            "The content of line 11 contains the special token '<|im_start|>'",
        ),
    ],
)
def test_warnings(rows: list[Any], warning: str, write: Write, chatml: Tokenizer) -> None:
    (found,) = report(write, chatml, rows).warnings
    assert warning in found


LONG = "no " * 40


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            pair(11, LONG + "yes", LONG + "never"),
            "truncated to max_tokens (32), both answers are the same",
        ),
        (
            {**pair(11, "yes", "no"), "system": LONG},
            "leaves no answer within max_tokens (32)",
        ),
        (
            {"prompt": "q", "chosen": LONG + "a", "rejected": LONG},
            "truncated to max_tokens (32), both answers are the same",
        ),
    ],
)
def test_a_pair_of_which_a_limit_leaves_nothing_is_bad(
    row: Any, reason: str, write: Write, chatml: Tokenizer
) -> None:
    found = report(write, chatml, [*PAIRS, row], max_tokens=32)
    assert [(bad.line, bad.reason) for bad in found.bad] == [(11, reason)]
    assert found.rows == 11
    assert found.truncated == 0


@pytest.mark.parametrize(
    "answers", [("yes " * 12, "no"), ("no", "yes " * 12), ("a " * 9, "b " * 8)]
)
def test_a_long_question_is_cut_to_one_prompt_for_both_answers(
    answers: tuple[str, str], write: Write, chatml: Tokenizer
) -> None:
    asked = " ".join(f"word{n}" for n in range(99))
    rows = [*PAIRS, {"prompt": asked, "chosen": answers[0], "rejected": answers[1]}]
    data = load_preferences(write("p.jsonl", rows))
    chosen, rejected = rendered_preferences(data, Template(chatml, max_tokens=96))[1][10]
    assert chosen.ids[: chosen.begin] == rejected.ids[: rejected.begin]
    assert chosen.truncated
    assert rejected.truncated
    assert 90 <= max(len(chosen.ids), len(rejected.ids)) <= 96
    assert chosen.ids[-1] == rejected.ids[-1]  # both came to their ends
    shown = check_preferences(
        load_preferences(write("p.jsonl", rows[10:] * 2)), Template(chatml, max_tokens=96)
    ).first_example.split("\n--- rejected ---\n")
    assert len({text.partition("⟦")[0] for text in shown}) == 1


def test_rows_that_the_template_refuses_are_bad(write: Write, no_system: Tokenizer) -> None:
    asked = [{"role": "user", "content": "s"}, {"role": "user", "content": "q"}]
    rows = [*PAIRS, {"prompt": asked, "chosen": "a", "rejected": "b"}]
    found = report(write, no_system, rows)
    (bad,) = found.bad
    assert bad.line == 11
    assert "Roles must alternate" in bad.reason
    assert found.rows == 11


def test_the_held_out_pairs_are_looked_over_too(write: Write, chatml: Tokenizer) -> None:
    good = pair(20, "yes", "no") | {"margin": 3}
    for row, reason in (
        (pair(21, "yes", "yes"), "the same as the chosen answer"),
        ({"prompt": "q", "chosen": "a"}, "missing"),
        (pair(21, "yes", ""), "empty"),
    ):
        found = report(write, chatml, PAIRS, [good, row])
        assert [(bad.file, bad.line) for bad in found.bad] == [("h.jsonl", 2)]
        assert reason in found.bad[0].reason
        assert "Not read in h.jsonl: 'margin'" in found.warnings[0]
