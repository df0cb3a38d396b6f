"""Losses straight from the head's input: those of the logits, and only where the head allows it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from onebase.adapters.full import trainable_copy
from onebase.adapters.methods import build_adapter
from onebase.engine import forward, head
from onebase.engine.head import head_losses, is_frozen_linear
from onebase.engine.rows import TokenRow, read_rows, token_losses
from onebase.model.base import Base

Rows = Callable[..., list[TokenRow]]


@pytest.fixture(params=[(1024, 1000), (7, 77), (7, 28), (23, 23), (1, 1)])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once; a few rows with the whole vocabulary of 11, or a part of it; one by one."""
    rows, numbers = request.param
    monkeypatch.setattr(head, "_ROWS", rows)
    monkeypatch.setattr(head, "_BLOCK", {"cpu": numbers, "cuda": numbers})


@pytest.mark.usefixtures("_blocks")
def test_losses_and_gradients_are_those_of_the_logits() -> None:
    torch.manual_seed(0)
    weight = torch.randn(11, 5, dtype=torch.float64) * 20  # logits far from zero
    hidden = torch.randn(23, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 11, (23,))
    upstream = torch.rand(23, dtype=torch.float64)
    expected = cross_entropy(hidden @ weight.t(), target, reduction="none")
    (wanted,) = torch.autograd.grad(expected @ upstream, hidden)
    losses = head_losses(hidden.float(), weight.float(), target)
    torch.testing.assert_close(losses, expected.float(), atol=3e-5, rtol=0)  # up to 102
    again = hidden.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(
        head_losses(again, weight.float(), target) @ upstream.float(), again
    )
    torch.testing.assert_close(gradient, wanted.float(), atol=1.5e-4, rtol=0)  # up to 42


def test_a_loss_by_hand() -> None:
    weight = torch.tensor([[1.0], [2.0], [4.0]])
    hidden = torch.tensor([[0.0], [1.0]], requires_grad=True)
    losses = head_losses(hidden, weight, torch.tensor([2, 0]))
    powers = torch.tensor([1.0, 2.0, 4.0]).exp()
    expected = torch.stack([torch.tensor(3.0).log(), powers.sum().log() - 1])
    torch.testing.assert_close(losses.detach(), expected)
    losses.sum().backward()
    mean = torch.tensor(
        [7 / 3 - 4, float(powers @ torch.tensor([1.0, 2.0, 4.0]) / powers.sum()) - 1]
    )
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad.squeeze(1), mean)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("_blocks")
def test_in_16_bits_as_near_as_16_bits_are(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, target = torch.randn(11, 5).to(kind), torch.randint(0, 11, (23,))
    hidden = torch.randn(23, 5, requires_grad=True)
    expected = cross_entropy(hidden @ weight.float().t(), target, reduction="none")
    (wanted,) = torch.autograd.grad(expected.sum(), hidden)
    losses = head_losses(hidden, weight, target)
    (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    rounding = {torch.bfloat16: 1e-2, torch.float16: 4e-3}[kind]
    torch.testing.assert_close(losses, expected, atol=rounding, rtol=0)
    torch.testing.assert_close(gradient, wanted, atol=rounding, rtol=0)


@pytest.mark.usefixtures("_blocks")
def test_entropies_are_those_of_the_softmax() -> None:
    torch.manual_seed(0)
    weight, hidden = torch.randn(11, 5), torch.randn(23, 5)
    found = torch.empty(23)
    target = torch.zeros(23, dtype=torch.long)
    losses = head_losses(hidden, weight, target, entropies=found)
    expected = torch.distributions.Categorical(logits=hidden @ weight.t()).entropy()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(losses, head_losses(hidden, weight, target))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("fused", [True, False])
def test_a_reading_has_losses_entropies_and_states(
    fused: bool,
    temperature: float,
    architecture: str,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the plain model's logits and its states before the head."""
    base, ids = make_base(architecture), tuple(range(20, 34))
    if not fused:
        monkeypatch.setattr(forward, "_fused_head", lambda _: False)
    learned = (False,) * 9 + (True,) * 5
    rows = [TokenRow(None, ids, learned), TokenRow(None, ids[:8], (False,) * 8, (3, 7))]
    with torch.no_grad():
        output, placed = read_rows(base, rows, {}, temperature=temperature, entropies=True)
        out = plain_model(architecture)(input_ids=torch.tensor([ids]), output_hidden_states=True)
    logits = out.logits[0, 8:13] / temperature
    expected = cross_entropy(logits, torch.tensor(ids[9:]), reduction="none")
    torch.testing.assert_close(output.losses, expected, atol=1e-5, rtol=0)
    entropies = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(output.entropies, entropies, atol=1e-5, rtol=0)
    states = out.hidden_states[-1][0, [3, 7]]
    torch.testing.assert_close(output.states, states, atol=1e-5, rtol=0)
    assert placed.hidden_state_row.tolist() == [1, 1]
    assert placed.row.tolist() == [0] * 5


def test_which_heads_are_frozen_linear_layers() -> None:
    plain = nn.Linear(2, 3, bias=False).requires_grad_(False)
    assert is_frozen_linear(plain)
    assert not is_frozen_linear(nn.Linear(2, 3, bias=False))
    assert not is_frozen_linear(nn.Linear(2, 3).requires_grad_(False))
    assert not is_frozen_linear(nn.Sequential(plain))


def losses_of(base: Base, rows: list[TokenRow]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    adapter = build_adapter(base, "lora", {"rank": 2}, init_text="x", seed=0)
    for parameter in adapter.parameters():
        parameter.data += 0.1
    losses, _ = token_losses(base, rows, {"a": adapter.contribution()})
    return losses.detach(), list(torch.autograd.grad(losses.sum(), list(adapter.parameters())))


def test_every_base_computes_them_in_its_head(
    architecture: str,
    make_base: Callable[..., Base],
    make_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = make_rows("a", shared=4)
    used: list[int] = []

    def counted(hidden: torch.Tensor, *rest: torch.Tensor, **named: Any) -> torch.Tensor:
        used.append(len(hidden))
        return head_losses(hidden, *rest, **named)

    monkeypatch.setattr(forward, "head_losses", counted)
    losses, gradients = losses_of(make_base(architecture), rows)
    assert used[-1] == sum(row.labels for row in rows)
    monkeypatch.setattr(forward, "_fused_head", lambda _: False)
    expected, wanted = losses_of(make_base(architecture), rows)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)
    largest = max(float(one.abs().max()) for one in wanted)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * largest, rtol=0)


def test_what_happens_to_logits_behind_the_head_is_not_lost(
    make_base: Callable[..., Base], plain_model: Callable[..., Any], make_rows: Rows
) -> None:
    """Gemma 2 caps its logits, for one: its head computes no losses itself."""
    rows = make_rows(None)
    capped = make_base("gemma3")
    capped.model.config.final_logit_softcapping = 2.0
    losses, row_of = token_losses(capped, rows, {})
    for index, row in enumerate(rows):
        logits = 2.0 * (plain_logits(plain_model("gemma3"), row) / 2.0).tanh()
        expected = label_losses(logits, row)
        torch.testing.assert_close(losses[row_of == index], expected, atol=1e-5, rtol=0)


def test_weights_that_learn_get_their_gradient(
    make_base: Callable[..., Base], plain_model: Callable[..., Any], make_rows: Rows
) -> None:
    """As transformers' own model of the same weights does, row by row."""
    base, plain, rows = trainable_copy(make_base()), plain_model("llama"), make_rows(None)
    losses, _ = token_losses(base, rows, {})
    losses.sum().backward()
    sum(label_losses(plain_logits(plain, row), row).sum() for row in rows).backward()  # type: ignore[union-attr]
    weight, expected = base.model.get_output_embeddings().weight, plain.lm_head.weight.grad
    assert weight.grad is not None
    scale = float(expected.abs().max())
    torch.testing.assert_close(weight.grad / scale, expected / scale, atol=1e-5, rtol=0)


def plain_logits(model: Any, row: TokenRow) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([row.ids])).logits[0]
    return logits


def label_losses(logits: torch.Tensor, row: TokenRow) -> torch.Tensor:
    """The losses of a row's labels, from its logits."""
    losses = cross_entropy(logits[:-1], torch.tensor(row.ids[1:]), reduction="none")
    return losses[torch.tensor(row.loss_mask[1:])]
