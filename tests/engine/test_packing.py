"""A pack of ragged rows against a padded loop, and what stands in a pack how often."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import NOTHING, Contribution
from onebase.engine.forward import node_kv, run_pack
from onebase.engine.pack import Pack
from onebase.engine.rows import TokenRow, by_budget, even_groups, pack_rows, token_losses
from onebase.model.base import Base

Rows = Callable[..., list[TokenRow]]
PROMPT = Contribution(virtual=torch.zeros(5, 32))
PREFIX = Contribution(prefix=(torch.zeros(3, 2, 4, 8), torch.zeros(3, 2, 4, 8)))


def row(text: str, adapter: str | None = "a") -> TokenRow:
    """A row of one token a letter; the capital ones are labels."""
    return TokenRow(
        adapter,
        tuple(ord(letter.lower()) for letter in text),
        tuple(letter.isupper() for letter in text),
    )


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=2e-6)


@pytest.mark.parametrize(
    ("shared", "learn"), [(0, 1), (5, 7), (7, 7)], ids=["apart", "shared", "to-the-answer"]
)
def test_a_pack_equals_a_padded_batch(
    shared: int,
    learn: int,
    variant: str,
    base: Base,
    make_adapter: Callable[[str], Adapter],
    twin_of: Callable[..., Any],
    make_rows: Rows,
) -> None:
    adapter = make_adapter(variant)
    rows = make_rows(variant, count=4, shared=shared, learn=learn)
    losses, row_of = token_losses(base, rows, {variant: adapter.contribution()})
    losses.mean().backward()
    twin = twin_of(adapter)
    mean = twin.mean_loss(rows)
    mean.backward()
    close(losses.mean(), mean)
    for index, expected in enumerate(twin.losses(rows)):
        assert len(expected) == rows[index].labels
        close(losses[row_of == index], expected)
    for parameter, gradient in twin.gradients():
        scale = gradient.abs().max()
        close(parameter.grad / scale, gradient / scale, 1e-4)


@pytest.mark.parametrize(("shared", "learn"), [(0, 1), (5, 7), (7, 7)])
def test_a_pack_of_the_base_s_rows_equals_a_padded_batch(
    shared: int, learn: int, base: Base, twin_of: Callable[..., Any], make_rows: Rows
) -> None:
    rows = make_rows(None, count=4, shared=shared, learn=learn)
    with torch.no_grad():
        losses, row_of = token_losses(base, rows, {})
        for index, expected in enumerate(twin_of(None).losses(rows)):
            close(losses[row_of == index], expected)


def test_answers_to_one_text_equal_a_padded_batch(
    variant: str,
    base: Base,
    make_adapter: Callable[[str], Adapter],
    twin_of: Callable[..., Any],
) -> None:
    adapter = make_adapter(variant)
    texts = ["so: questionA", "so: questionBB", "so: elseC", "so: questionAD", "so: elseEFG"]
    rows = [row(text, variant) for text in texts]
    contribution = adapter.contribution()
    assert len(pack_rows(rows, {variant: contribution}).pack.nodes) == (
        len(texts) + 3 + bool(contribution.virtual_tokens)
    )
    losses, row_of = token_losses(base, rows, {variant: contribution})
    losses.mean().backward()
    twin = twin_of(adapter)
    twin.mean_loss(rows).backward()
    for index, expected in enumerate(twin.losses(rows)):
        close(losses[row_of == index], expected)
    for parameter, gradient in twin.gradients():
        scale = gradient.abs().max()
        close(parameter.grad / scale, gradient / scale, 1e-4)


def test_answers_to_one_text_share_it() -> None:
    placed = pack_rows([row("ask ONE"), row("other X"), row("ask TWO")], {"a": NOTHING})
    assert [node.length for node in placed.pack.nodes] == [4, 3, 3, 7]
    assert placed.nodes == [[0, 1], [3], [0, 2]]


def test_states_share_the_text_before_them() -> None:
    prompt = tuple(b"ask")
    rows = [TokenRow("a", prompt + tuple(b"one"), (False,) * 6, (2, 3, 4)) for _ in range(2)]
    placed = pack_rows([*rows, row("else X")], {"a": NOTHING})
    assert [node.length for node in placed.pack.nodes] == [3, 3, 3, 6]
    spots = [placed.predict[index].item() for index in placed.hidden_states_at.tolist()]
    assert spots == [2, 3, 4, 2, 6, 7]
    assert placed.hidden_state_row.tolist() == [0, 0, 0, 1, 1, 1]


def test_what_rows_share_stands_in_the_pack_once() -> None:
    rows = [
        row("hello ABC", "a"),
        row("hello", "b"),
        row("hello DE", "a"),
        row("hello", None),
        row("hello F", "a"),
    ]
    placed = pack_rows(rows, {"a": PROMPT, "b": PREFIX})
    # 5 virtual tokens, "hello " and the three ends; "hello" and no virtual token twice.
    assert len(placed.pack.ids) == (5 + 6 + 3 + 2 + 1) + 5 + 5
    assert placed.pack.adapters == ["a", "b"]
    assert len(placed.pack.nodes) == 7
    lengths = {
        name: [node.length for node in placed.pack.nodes if node.adapter == name]
        for name in ("a", "b", None)
    }
    assert lengths == {"a": [5, 6, 3, 2, 1], "b": [5], None: [5]}
    virtual = placed.pack.virtual_node("a")
    assert virtual is not None
    assert placed.pack.path(2) == [virtual, 1, 2]
    # A text's first position follows the virtual tokens or the prefix.
    assert [node.position for node in placed.pack.nodes] == [0, 5, 11, 11, 11, 4, 0]
    assert placed.pack.owners().tolist() == [0] * 17 + [1] * 5 + [-1] * 5
    assert placed.pack.positions()[-10:].tolist() == [4, 5, 6, 7, 8, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["xyAB", "xzAB"], 1),
        (["xyAB", "yyAB"], 0),
        (["xAbb", "xAbb"], 1),  # a label is not shared
        (["xabc", "xabA"], 3),
        (["xa", "xabc"], 1),  # every row keeps a token
        (["xabc", "xa"], 1),
        (["xab", "xab"], 2),
        (["x", "xab"], 0),
        (["xabA"], 0),  # a single row is one segment
    ],
)
def test_how_much_is_shared(texts: list[str], expected: int) -> None:
    pack = pack_rows([row(text) for text in texts], {"a": NOTHING}).pack
    assert len(pack.ids) == sum(map(len, texts)) - expected * (len(texts) - 1)
    assert len(pack.nodes) == len(texts) + bool(expected)


def test_logits_are_computed_only_where_a_label_is_predicted(
    make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base()
    contributions = {"a": PROMPT}
    rows = [row("question ANS"), row("question BN"), row("question c"), row("Z", None)]
    placed = pack_rows(rows, contributions)
    # The last token before A and B is one; the other three labels have a token each. Neither
    # of the rows without anything to predict from asks for a logit.
    assert len(placed.predict) == 4
    assert len(placed.at) == len(placed.target) == len(placed.row) == 5
    assert placed.target.tolist() == [ord(letter) for letter in "ansbn"]
    assert placed.row.tolist() == [0, 0, 0, 1, 1]
    assert [placed.pack.ids[spot] for spot in placed.predict[placed.at].tolist()] == [
        ord(letter) for letter in " an b"
    ]
    through: list[int] = []
    base.model.lm_head.register_forward_hook(
        lambda module, inputs, output: through.append(inputs[0][0].shape[0])
    )
    losses, row_of = token_losses(base, rows, contributions)
    assert through[-1] == 4  # before it, the trial of this base's head
    assert losses.shape == row_of.shape == (5,)


def test_the_first_token_of_a_text_is_no_label() -> None:
    assert row("ABc").labels == 1
    for contribution in (NOTHING, PROMPT, PREFIX):  # virtual tokens don't predict it either
        placed = pack_rows([row("ABc"), row("AcB")], {"a": contribution})
        assert placed.target.tolist() == [ord("b"), ord("b")]


def test_rows_without_a_label_have_no_loss(make_base: Callable[..., Base]) -> None:
    losses, row_of = token_losses(make_base(), [row("abc"), row("A", None)], {"a": NOTHING})
    assert losses.shape == row_of.shape == (0,)


def test_rows_of_other_adapters_are_not_seen(
    base: Base, adapters: dict[str, Adapter], make_rows: Rows
) -> None:
    contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
    # The same texts for all: an adapter could be seen only through its own tokens.
    rows = [line for name in [None, *adapters] for line in make_rows(name, count=2, shared=5)]
    with torch.no_grad():
        before, row_of = token_losses(base, rows, contributions)
        for name in [None, *adapters]:
            of_adapter = torch.tensor([line.adapter == name for line in rows])
            changed = [
                TokenRow(name, (*line.ids[:5], *line.ids[:4:-1]), line.loss_mask) if mine else line
                for line, mine in zip(rows, of_adapter.tolist(), strict=True)
            ]
            after, _ = token_losses(base, changed, contributions)
            close(after[~of_adapter[row_of]], before[~of_adapter[row_of]], 1e-6)
            assert float((after - before)[of_adapter[row_of]].abs().max()) > 0.1


def test_a_row_of_another_adapter_gives_no_gradient(
    base: Base, adapters: dict[str, Adapter], make_rows: Rows
) -> None:
    contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
    rows = [line for name in [None, *adapters] for line in make_rows(name, count=2, shared=5)]
    losses, row_of = token_losses(base, rows, contributions)
    of_adapter = torch.tensor([line.adapter == "lora" for line in rows])[row_of]
    losses[of_adapter].mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in adapters["lora"].parameters())
    for name, adapter in adapters.items():
        if name != "lora":
            assert all(
                parameter.grad is None or not parameter.grad.any()
                for parameter in adapter.parameters()
            ), name


def test_the_order_of_rows_does_not_matter(
    base: Base, adapters: dict[str, Adapter], make_rows: Rows
) -> None:
    contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
    rows = [line for name in [None, *adapters] for line in make_rows(name, count=3)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        losses, row_of = token_losses(base, rows, contributions)
        again, row_again = token_losses(base, [rows[index] for index in order], contributions)
    for index, original in enumerate(order):
        close(again[row_again == index], losses[row_of == original])


def test_dropout_spares_the_tokens_of_other_adapters(
    base: Base, adapters: dict[str, Adapter], make_rows: Rows
) -> None:
    lora = adapters["lora"].lora
    assert lora is not None
    rows = [line for name in [None, *adapters] for line in make_rows(name, count=1)]

    def losses(dropout: float, *, training: bool) -> torch.Tensor:
        lora.dropout = dropout
        adapters["lora"].train(training)
        contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
        with torch.no_grad():
            return token_losses(base, rows, contributions)[0]

    _, row_of = token_losses(base, rows, {n: a.contribution() for n, a in adapters.items()})
    of_adapter = torch.tensor([line.adapter == "lora" for line in rows])[row_of]
    plain, dropped = losses(0.0, training=True), losses(0.5, training=True)
    close(dropped[~of_adapter], plain[~of_adapter], 1e-6)
    assert float((dropped - plain)[of_adapter].abs().max()) > 1e-2
    close(losses(0.5, training=False), plain, 1e-6)


def test_virtual_tokens_as_keys_and_values_answer_the_same(
    base: Base, adapters: dict[str, Adapter], make_rows: Rows
) -> None:
    """What `node_kv` gives can stand for the virtual tokens: it's a KV prefix."""
    names = ("prompt-tuning-text", "p-tuning-lstm")
    pack = Pack({name: adapters[name].contribution() for name in names})
    texts = {name: make_rows(name, count=1)[0].ids for name in names}
    nodes = {name: pack.nodes[pack.add(name, ids)] for name, ids in texts.items()}
    with torch.no_grad():
        logits = run_pack(base, pack, torch.arange(len(pack.ids)))
        for name, node in nodes.items():
            virtual = pack.virtual_node(name)
            assert virtual is not None
            served = Pack({name: Contribution(prefix=node_kv(base, pack, virtual))})
            served.add(name, texts[name])
            ours = run_pack(base, served, torch.arange(node.length))
            close(ours, logits[node.start : node.start + node.length])


def test_nothing_of_a_pass_stays_in_the_base(
    base: Base, adapters: dict[str, Adapter], twin_of: Callable[..., Any], make_rows: Rows
) -> None:
    ids = torch.tensor([make_rows(None, count=1)[0].ids])
    contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
    rows = [line for name in adapters for line in make_rows(name, count=1)]
    with torch.no_grad():
        token_losses(base, rows, contributions)
        close(base.model(ids).logits, twin_of(None).model(ids).logits)


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([], 10, []),
        ([3, 3, 3], 6, [[3, 3], [3]]),
        ([3, 3, 3], 9, [[3, 3, 3]]),
        ([3, 3, 3], 8, [[3, 3, 3]]),  # a quarter more at most, and one group less
        ([3, 3, 3], 5, [[3, 3], [3]]),
        ([3, 3, 3], 4, [[3], [3], [3]]),
        ([20], 10, [[20]]),  # a row is never cut
        ([20, 1, 2, 20, 3], 10, [[20], [1, 2], [20], [3]]),
        ([4, 6, 3], 10, [[4], [6, 3]]),
        ([2] * 11, 10, [[2] * 6, [2] * 5]),  # not 5, 5 and 1
        ([2, 2, 2, 2, 2, 10, 1], 10, [[2] * 5, [10, 1]]),
        ([1, 1], 0, [[1], [1]]),
    ],
)
def test_by_budget(lengths: list[int], budget: int, expected: list[list[int]]) -> None:
    rows = [TokenRow("a", (index,) * size, (True,) * size) for index, size in enumerate(lengths)]
    groups = list(by_budget(rows, budget))
    assert [[len(line.ids) for line in group] for group in groups] == expected
    assert [line for group in groups for line in group] == rows


def test_groups_are_few_and_hold_at_most_a_quarter_more() -> None:
    chance = random.Random(0)
    for _ in range(300):
        sizes = [chance.randint(1, 60) for _ in range(chance.randint(1, 40))]
        groups = [[sizes[index] for index in group] for group in even_groups(sizes, 100)]
        assert [size for group in groups for size in group] == sizes
        assert all(sum(group) <= 125 for group in groups)
        assert len(groups) <= math.ceil(sum(sizes) / 100) + 1
        if len(groups) > 1:  # none is left nearly empty
            assert min(map(sum, groups)) >= 25
