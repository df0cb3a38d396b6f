"""Merged contributions, against merging by hand on the weights; their digests."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import NOTHING, Contribution, LowRank, Scaling, merged
from onebase.adapters.methods import build_adapter
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.errors import UsageError
from onebase.model.base import Base

IDS = [5, 17, 33, 120, 9, 4, 77, 250, 31, 8, 6, 99]


def shaken(base: Base, method: str, seed: int, **settings: Any) -> Adapter:
    adapter = build_adapter(base, method, settings, init_text="hello, you", seed=seed)
    torch.manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return adapter.eval()


def logits(base: Base, contribution: Contribution) -> Tensor:
    pack = Pack({"it": contribution})
    node = pack.nodes[pack.add("it", IDS)]
    with torch.no_grad():
        return run_pack(base, pack, torch.arange(node.start, node.start + node.length))


def test_deltas_add_up_and_scalings_multiply(
    make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    base, model = make_base(), plain_model("llama")
    adapters = [
        shaken(base, "lora", 1, rank=4, alpha=8.0),
        shaken(base, "lora+ia3", 2),
        shaken(base, "ia3", 3),
        shaken(base, "lora", 4, rank=2, target="attention", alpha=1.0),
    ]
    weights = {name: value.clone() for name, value in model.named_parameters()}
    vectors: dict[str, tuple[Tensor, bool]] = {}
    for adapter in adapters:
        if adapter.ia3 is not None:
            sites = zip(adapter.ia3.vectors, adapter.ia3.sites.items(), strict=True)
            for vector, (name, (_, inner)) in sites:
                before = vectors.get(name, (torch.ones_like(vector), inner))[0]
                vectors[name] = (before * vector, inner)
    for name, (vector, inner) in vectors.items():
        weight = weights[f"{name}.weight"]
        weights[f"{name}.weight"] = weight * vector if inner else weight * vector[:, None]
    for adapter in adapters:
        if adapter.lora is not None:
            for at, (name, site) in enumerate(adapter.lora.sites.items()):
                delta = site.scale * adapter.lora.b[at] @ adapter.lora.a[at]
                vector, inner = vectors.get(name, (torch.ones(()), False))
                weights[f"{name}.weight"] = weights[f"{name}.weight"] + (
                    delta * vector if inner else delta
                )
    with torch.no_grad():
        ids = torch.tensor([IDS])
        expected = torch.func.functional_call(model, weights, (), {"input_ids": ids}).logits[0]
        found = logits(base, merged([adapter.contribution() for adapter in adapters]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert float((logits(base, NOTHING) - expected).abs().max()) > 0.1


def test_prefixes_stand_one_behind_the_other(
    make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    """PEFT's prefix of both adapters' rows, over the LoRA of one of them."""
    base = make_base()
    first = shaken(base, "lora+p-tuning-v2", 1)
    second = shaken(base, "p-tuning-v2", 2, virtual_tokens=4)
    assert first.prefix is not None
    assert second.prefix is not None
    assert first.lora is not None
    rows = torch.cat([first.prefix(), second.prefix()]).detach()
    model = plain_model("llama")
    for at, (name, site) in enumerate(first.lora.sites.items()):
        delta = site.scale * first.lora.b[at] @ first.lora.a[at]
        model.get_submodule(name).weight.data += delta.detach()
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=len(rows), inference_mode=True
    )
    theirs = peft.get_peft_model(model, config)
    theirs.prompt_encoder["default"].embedding.weight.data.copy_(rows)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=torch.tensor([IDS])).logits[0]
    found = merged([first.contribution(), second.contribution()])
    assert found.prefix_tokens == len(rows)
    torch.testing.assert_close(logits(base, found), expected, atol=1e-5, rtol=0)


def test_one_contribution_stays_what_it_is(make_base: Callable[..., Base]) -> None:
    contribution = shaken(make_base(), "lora", 1).contribution()
    assert merged([contribution]) is contribution
    joined = merged([NOTHING, contribution])
    assert joined.digest() == contribution.digest() != NOTHING.digest()


def delta(factor: bool = False) -> LowRank:
    return LowRank(
        torch.ones(2, 4), torch.ones(6, 2), 2.0, factor=torch.ones(6) if factor else None
    )


def prefixed(tokens: int, *masked_prefix: int) -> Contribution:
    part = torch.ones(3, 1, tokens, 2)
    return Contribution(prefix=(part, part), masked_prefix=masked_prefix)


PLACED = Contribution(placed=torch.ones(2, 8))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (PLACED, PLACED, "inside the text"),
        (Contribution({"x": delta()}), Contribution({"x": delta(factor=True)}), "DoRA"),
        (
            Contribution(scalings={"x": Scaling(torch.ones(4), on_inputs=True)}),
            Contribution(scalings={"x": Scaling(torch.ones(4), on_inputs=False)}),
            "inputs",
        ),
        (prefixed(5), prefixed(3, 0, 3, 0), "prefix on some layers"),
    ],
)
def test_what_cant_be_joined_is_refused_with_the_reason(
    first: Contribution, second: Contribution, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        merged([first, second])


def test_layers_that_miss_the_first_prefix_may_miss_the_second() -> None:
    assert merged([prefixed(5, 0, 5, 0), prefixed(3)]).masked_prefix == (0, 5, 0)
    assert merged([prefixed(5, 0, 5, 0), prefixed(3, 0, 3, 0)]).masked_prefix == (0, 8, 0)
    assert merged([prefixed(5), prefixed(3)]).masked_prefix == ()
    apart = merged([Contribution({"x": delta()}), Contribution({"y": delta(factor=True)})])
    assert set(apart.deltas) == {"x", "y"}


def test_the_digest_tells_contents_apart(make_base: Callable[..., Base]) -> None:
    base = make_base()
    whole = shaken(base, "lora+ia3+p-tuning-v2", 1).contribution()
    assert whole.digest() == shaken(base, "lora+ia3+p-tuning-v2", 1).contribution().digest()
    name, other = next(iter(whole.deltas)), next(iter(whole.scalings))
    delta, scaling = whole.deltas[name], whole.scalings[other]
    assert whole.prefix is not None
    keys, values = whole.prefix
    changed = [
        replace(whole, deltas={**whole.deltas, name: replace(delta, scale=delta.scale + 1)}),
        replace(whole, deltas={**whole.deltas, name: replace(delta, b=delta.b + 1e-6)}),
        replace(whole, deltas={}),
        replace(whole, scalings={**whole.scalings, other: replace(scaling, on_inputs=not scaling.on_inputs)}),
        replace(whole, prefix=(values, keys)),
        replace(whole, prefix=(keys.double(), values)),
        replace(whole, masked_prefix=(1, 0, 0)),
        replace(whole, placed=keys),
        replace(whole, virtual=keys),
    ]  # fmt: skip
    assert len({item.digest() for item in (whole, *changed)}) == 1 + len(changed)
    assert whole.bytes == sum(
        tensor.nbytes
        for tensor in (
            *(part for item in whole.deltas.values() for part in (item.a, item.b)),
            *(item.vector for item in whole.scalings.values()),
            keys,
            values,
        )
    )
