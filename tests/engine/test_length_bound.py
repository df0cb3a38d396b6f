"""Bases whose rotary embedding changes with the longest text: a neighbour never changes a result."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.rows import TokenRow, token_losses
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError
from onebase.model.base import Base

BORDER = 40
Model = Callable[..., Any]
Bases = Callable[..., Base]


@pytest.fixture(params=["longrope", "dynamic"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def row(length: int, seed: int, adapter: str | None = None) -> TokenRow:
    drawn = torch.Generator().manual_seed(seed)
    ids = tuple(torch.randint(3, 300, (length,), generator=drawn).tolist())
    return TokenRow(adapter, ids, (False,) + (True,) * (length - 1))


def losses(base: Base, rows: Sequence[TokenRow], own: Any = None) -> list[torch.Tensor]:
    with torch.no_grad():
        found, row_of = token_losses(base, rows, own or {})
    return [found[row_of == index] for index in range(len(rows))]


def alone(model: Any, text: TokenRow) -> torch.Tensor:
    """transformers' own losses of one text, by a model that has seen no other."""
    ids = torch.tensor([text.ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    return cross_entropy(logits[:-1], ids[0, 1:], reduction="none")


def test_every_text_has_the_losses_that_it_has_alone(
    kind: str, length_bound_model: Model, length_bound_base: Bases
) -> None:
    rows = [row(12, 0), row(BORDER, 1), row(BORDER - 1, 2), row(5, 3)]
    found = losses(length_bound_base(kind), rows)
    for text, own in zip(rows, found, strict=True):
        torch.testing.assert_close(own, alone(length_bound_model(kind), text), atol=1e-4, rtol=0)


def test_a_longer_text_is_refused_and_leaves_nothing_behind(
    kind: str, length_bound_model: Model, length_bound_base: Bases
) -> None:
    base, text = length_bound_base(kind), row(BORDER, 1)
    expected = losses(base, [text])[0]
    with pytest.raises(UsageError, match=f"41 tokens.*tiny-{kind}.*type {kind}: beyond 40 tokens"):
        losses(base, [row(12, 0), row(BORDER + 1, 2)])
    assert torch.equal(losses(base, [text])[0], expected)


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning-v2"])
def test_virtual_tokens_are_a_part_of_the_text(
    kind: str, method: str, length_bound_base: Bases
) -> None:
    base = length_bound_base(kind)
    adapter = build_adapter(base, method, {"virtual_tokens": 4}, init_text="hello", seed=0)
    assert adapter.before_text == 4
    own = {"a": adapter.contribution()}
    losses(base, [row(BORDER - 4, 0, "a")], own)
    with pytest.raises(UsageError, match="41 tokens, including virtual tokens"):
        losses(base, [row(BORDER - 3, 0, "a")], own)


def test_placed_tokens_are_counted_once(kind: str, length_bound_base: Bases) -> None:
    base = length_bound_base(kind)
    template = Template(base.tokenizer, kind="{v:2}a{v:2}{input}")
    sizes = {"leading": template.leading, "placed": template.placed}
    adapter = build_adapter(base, "p-tuning", {}, init_text="hello", seed=0, **sizes)
    assert adapter.before_text == 2  # the others are among the text's ids


def test_answers_are_those_that_transformers_gives_alone_up_to_the_border(
    kind: str, length_bound_model: Model, length_bound_base: Bases
) -> None:
    base = length_bound_base(kind)
    engine = Engine(base)
    texts = ["hello", "where is the parcel", "x"]
    asked = [("base", text) for text in texts]
    answers = engine.generate(asked, Sampling(max_tokens=100))
    for text, answer in zip(texts, answers, strict=True):
        ids = engine.tasks["base"].template.prompt(text)
        begun = len(ids)
        while len(ids) < BORDER and ids[-1] != 2:
            with torch.no_grad():
                logits = length_bound_model(kind)(input_ids=torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
        ended = ids[-1] == 2
        assert answer.finish_reason == ("stop" if ended else "length")
        assert answer.tokens == len(ids) - begun - ended
        assert answer.text == base.tokenizer.decode(ids[begun : len(ids) - ended]).strip()
    assert {answer.finish_reason for answer in answers} >= {"length"}


def test_a_prompt_beyond_the_border_is_refused(kind: str, length_bound_base: Bases) -> None:
    engine = Engine(length_bound_base(kind))
    long = "parcel " * BORDER
    with pytest.raises(UsageError, match=rf"context of 40 \(rope type {kind}\)"):
        engine.generate([("base", "hello"), ("base", long)], Sampling(max_tokens=4))
    with pytest.raises(UsageError, match=f"type {kind}"):
        engine.classify("base", ["hello", long], labels=["a", "b"])
