"""Every method over a quantized base, against PEFT over the same quantized base."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.engine.conftest import answered, request_of, task_of

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import METHODS, build_adapter
from onebase.engine.rows import TokenRow, token_losses
from onebase.engine.sampling import Sampling
from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.model.precision import choose, hold

Rows = Callable[..., list[TokenRow]]


@pytest.fixture(params=["int8", "nf4"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(precision: str, architecture: str, make_base: Callable[..., Base]) -> Base:
    base = make_base(architecture)
    base.hold_in(choose(precision, device="cpu", stored=torch.float32), "cpu")
    return base


@pytest.fixture
def plain_model(
    precision: str, make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> Callable[..., Any]:
    def make(architecture: str) -> Any:
        model = plain_model(architecture)
        linears = list(make_base(architecture).shape.linears)
        hold(model, linears, choose(precision, device="cpu", stored=torch.float32), "cpu")
        return model

    return make


def test_losses_and_gradients_equal_pefts(
    precision: str,
    base: Base,
    adapters: dict[str, Adapter],
    make_rows: Rows,
    twin_of: Callable[..., Any],
) -> None:
    rows = {name: make_rows(name, seed=seed) for seed, name in enumerate(adapters)}
    contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
    every = [row for own in rows.values() for row in own]
    losses, row_of = token_losses(base, every, contributions)
    means = {
        name: losses[torch.tensor([row.adapter == name for row in every])[row_of]].mean()
        for name in adapters
    }
    sum(means.values()).backward()  # type: ignore[union-attr]
    for name, adapter in adapters.items():
        if precision == "int8" and name == "lora-dora":
            continue  # PEFT takes the length of the rows of what it can't restore
        twin = twin_of(adapter)
        loss = twin.mean_loss(rows[name])
        loss.backward()
        torch.testing.assert_close(means[name], loss, atol=1e-3, rtol=0)
        for parameter, theirs in twin.gradients():
            scale = float(theirs.abs().max())
            assert scale > 1e-6
            torch.testing.assert_close(parameter.grad / scale, theirs / scale, atol=1e-3, rtol=0)


def test_requests_keep_to_themselves(base: Base, adapters: dict[str, Adapter]) -> None:
    contributions = {name: adapter.eval().contribution() for name, adapter in adapters.items()}
    contributions = {
        name: item for name, item in contributions.items() if item.virtual is None
    }  # those that need no compiling
    prompts = [(name, tuple(range(20 + at, 26 + at))) for at, name in enumerate(contributions)]

    tasks = {name: task_of(base, item) for name, item in contributions.items()}

    def tokens(some: list[tuple[str, tuple[int, ...]]]) -> list[list[int]]:
        requests = [request_of(tasks[name], ids, Sampling(max_tokens=6)) for name, ids in some]
        return [request.tokens for request in answered(requests)]

    together = tokens(prompts)
    assert together == [tokens([prompt])[0] for prompt in prompts]


def test_qlora_is_lora_on_a_4_bit_base_and_refused_elsewhere(
    make_base: Callable[..., Base],
) -> None:
    base = make_base()
    with pytest.raises(UsageError, match=r"nf4.*fp32"):
        build_adapter(base, "qlora", {}, init_text="x", seed=0)
    base.hold_in(choose("nf4", device="cpu", stored=torch.float32), "cpu")
    adapter = build_adapter(base, "qlora", {"rank": 2}, init_text="x", seed=0)
    lora = build_adapter(base, "lora", {"rank": 2}, init_text="x", seed=0)
    assert adapter.method == "qlora"
    for one, other in zip(adapter.parameters(), lora.parameters(), strict=True):
        assert torch.equal(one, other)
    assert METHODS["qlora"].options is METHODS["lora"].options
