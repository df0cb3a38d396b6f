"""What training taught as the end of an answer is what stops it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import onebase
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

ANSWER = "on its way"


def taught(
    base: Base, folder: Path, answer: str = ANSWER, template: str = "auto"
) -> onebase.Engine:
    """An engine whose task has learned to say `answer` to everything."""
    file = folder / "rows.jsonl"
    rows = [{"input": f"where is {at}?", "output": answer} for at in range(240)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"rank": 8, "epochs": 1, "batch_size": 8, "learning_rate": 2e-2, "held_out": 0.0}
    job = onebase.Job("t", file, template=template, set=settings)
    return onebase.Engine(
        base, onebase.train([job], base=base, workspace=onebase.Workspace(folder / "w"))
    )


def answer_of(engine: onebase.Engine) -> onebase.Answer:
    (answer,) = engine.generate([("t", "where is 3?")], Sampling(max_tokens=24))
    return answer


def base_ending(base: Base, ending: str, eos: str | None, named: int | list[int] | None) -> Base:
    tokenizer = base.tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", ending)
    tokenizer.eos_token = eos
    base.model.generation_config.eos_token_id = named
    return base


@pytest.mark.parametrize(
    ("ending", "eos", "named"),
    [
        ("<|im_end|>", "<|im_end|>", 2),
        ("<|im_end|>", "<pad>", 0),  # turns end with another token than the tokenizer's
        ("<|im_end|>", None, None),
        ("<|im_end|>", "<pad>", [0, 7]),
        ("", "<|im_end|>", [0, 7]),  # the template writes none: the tokenizer's is learned
        ("<|im_end|>\n<pad>", "<pad>", 0),
        (" <|im_end|>", "<|im_end|>", 2),
        ("]<|im_end|>", "<pad>", 0),
        ("\n### End", None, None),
        ("</s>", "<pad>", 0),
    ],
)
def test_an_answer_stops_where_training_taught_it(
    ending: str,
    eos: str | None,
    named: int | list[int] | None,
    make_base: Callable[..., Base],
    tmp_path: Path,
) -> None:
    answer = answer_of(taught(base_ending(make_base(), ending, eos, named), tmp_path))
    assert (answer.text, answer.finish_reason) == (ANSWER, "stop")


@pytest.mark.parametrize("template", ["plain", "{input} => "])
def test_other_templates_stop_at_the_tokenizer_s_end(
    template: str, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base = base_ending(make_base(), "<|im_end|>", "<pad>", None)
    answer = answer_of(taught(base, tmp_path, template=template))
    assert (answer.text, answer.finish_reason) == (ANSWER, "stop")


def test_where_there_is_no_end_an_answer_goes_on(
    make_base: Callable[..., Base], tmp_path: Path
) -> None:
    answer = answer_of(taught(base_ending(make_base(), "", None, None), tmp_path))
    assert answer.text.startswith(ANSWER)
    assert (answer.tokens, answer.finish_reason) == (24, "length")


def test_a_special_word_of_the_data_comes_back(
    make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base = make_base()
    base.tokenizer.add_special_tokens({"additional_special_tokens": ["<filename>"]})
    said = "see <filename> now"
    answer = answer_of(taught(base, tmp_path, said))
    assert (answer.text, answer.finish_reason) == (said, "stop")
