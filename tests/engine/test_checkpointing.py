"""Gradient checkpointing: the same numbers, from less memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.engine.rows import TokenRow, token_losses
from onebase.model.base import Base

Rows = Callable[..., list[TokenRow]]


def gradients(
    base: Base, adapters: dict[str, Adapter], rows: list[TokenRow], *, checkpointing: bool
) -> tuple[Tensor, list[Tensor], int]:
    """Losses, gradients of all parameters, and the bytes kept for the backward pass."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses, _ = token_losses(base, rows, contributions, checkpointing=checkpointing)
    token_losses(base, rows[:1], contributions)  # another pass before the backward
    parameters = [p for adapter in adapters.values() for p in adapter.parameters()]
    return losses.detach(), list(torch.autograd.grad(losses.sum(), parameters)), kept


def test_losses_and_gradients_are_identical(
    base: Base, adapters: dict[str, Adapter], make_rows: Rows
) -> None:
    """Every method at once, the deep prefix included, on every architecture."""
    settings = {"virtual_tokens": 4, "layers": "1"}
    some = build_adapter(base, "p-tuning-v2", settings, init_text="hello", seed=0)
    adapters = {**adapters, "on a layer": some}
    rows = [
        row for seed, name in enumerate([*adapters, None]) for row in make_rows(name, seed=seed)
    ]
    plain = gradients(base, adapters, rows, checkpointing=False)
    checked = gradients(base, adapters, rows, checkpointing=True)
    assert torch.equal(plain[0], checked[0])
    for one, other in zip(plain[1], checked[1], strict=True):
        assert float(one.abs().max()) > 0
        assert torch.equal(one, other)
    assert checked[2] < plain[2] / 2


@pytest.mark.parametrize("seed", [0, 1])
def test_dropout_draws_the_same_twice(
    seed: int, make_base: Callable[..., Base], make_rows: Rows
) -> None:

    base = make_base()
    settings = {"dropout": 0.5, "rank": 2}
    results = []
    for checkpointing in (False, True):
        adapter = build_adapter(base, "lora", settings, init_text="x", seed=seed).train()
        for parameter in adapter.parameters():
            parameter.data += 0.1
        results.append(
            gradients(base, {"it": adapter}, make_rows("it"), checkpointing=checkpointing)
        )
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(one, other)
