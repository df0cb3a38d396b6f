"""Every method in a mixed batch against PEFT's own model of that adapter alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from onebase.adapters.adapter import Adapter
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.engine.rows import TokenRow, token_losses
from onebase.model.base import Base

Rows = Callable[..., list[TokenRow]]
# Roundings of logits up to 5: 1.07e-5 has been seen on a processor with AVX2 alone.
LOGITS = 2e-5


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.fixture
def mixed(base: Base, adapters: dict[str, Adapter], make_rows: Rows) -> dict[str | None, Any]:
    """Rows of all adapters and of the base in one pass, by adapter: each with its logits."""
    pack = Pack({name: adapter.contribution() for name, adapter in adapters.items()})
    placed: dict[str | None, list[tuple[TokenRow, int]]] = {}
    for turn in range(2):  # the adapters' rows alternate
        for seed, name in enumerate([None, *adapters]):
            row = make_rows(name, count=2, seed=seed)[turn]
            placed.setdefault(name, []).append((row, pack.add(name, row.ids)))
    with torch.no_grad():
        logits = run_pack(base, pack, torch.arange(len(pack.ids)))
    spans = [slice(node.start, node.start + node.length) for node in pack.nodes]
    return {
        name: [(row, logits[spans[node]]) for row, node in rows] for name, rows in placed.items()
    }


def test_logits_equal_pefts(
    variant: str,
    adapters: dict[str, Adapter],
    mixed: dict[str | None, Any],
    twin_of: Callable[..., Any],
) -> None:
    twin, plain = twin_of(adapters[variant]), twin_of(None)
    for row, logits in mixed[variant]:
        assert len(logits) == len(row.ids) > 8  # longer than Gemma's window
        with torch.no_grad():
            theirs = twin.logits([row])[0]
            assert float((theirs - plain.logits([row])[0]).abs().max()) > 1e-2  # it does something
        close(logits, theirs, LOGITS)


def test_base_rows_equal_the_plain_model(
    mixed: dict[str | None, Any], twin_of: Callable[..., Any]
) -> None:
    plain = twin_of(None)
    with torch.no_grad():
        for row, logits in mixed[None]:
            close(logits, plain.logits([row])[0], LOGITS)


def test_gradients_equal_pefts(
    variant: str,
    base: Base,
    adapters: dict[str, Adapter],
    twin_of: Callable[..., Any],
    make_rows: Rows,
) -> None:
    rows = [
        row
        for seed, name in enumerate([*adapters, None])
        for row in make_rows(name, shared=5, seed=seed)
    ]
    contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
    losses, row_of = token_losses(base, rows, contributions)
    of_variant = torch.tensor([row.adapter == variant for row in rows])[row_of]
    # The other adapters' losses are part of the same backward pass.
    (losses[of_variant].mean() + losses[~of_variant].sum()).backward()

    twin = twin_of(adapters[variant])
    loss = twin.mean_loss([row for row in rows if row.adapter == variant])
    loss.backward()
    close(losses[of_variant].mean(), loss, 1e-5)
    gradients = twin.gradients()
    assert len(gradients) == len(list(adapters[variant].parameters()))
    for parameter, theirs in gradients:
        scale = float(theirs.abs().max())
        assert scale > 1e-6
        close(parameter.grad / scale, theirs / scale, 1e-4)
