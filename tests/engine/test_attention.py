"""Attention against formulas written out token by token."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Gemma2Config, Gemma2ForCausalLM

from onebase.adapters.contribution import Contribution
from onebase.engine import attention
from onebase.engine.attention import ATTENTION, PackedAttention, Rule
from onebase.engine.forward import prepare, run_pack
from onebase.engine.pack import Pack
from onebase.engine.rows import token_losses
from onebase.model.base import Base

LAYERS, HEADS, KV_HEADS, WIDTH = 3, 4, 2, 8


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def attended(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """One query, [head_dim], over keys and values, [keys, head_dim], in plain numbers."""
    scores = [sum((query * key).tolist()) * scale for key in keys]
    if softcap is not None:
        scores = [softcap * math.tanh(score / softcap) for score in scores]
    weights = [math.exp(score) for score in scores]
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


@pytest.mark.parametrize("softcap", [None, 0.5, 30.0])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("masked", [False, True])
def test_rule(softcap: float | None, scale: float | None, masked: bool) -> None:
    query, key, value = (torch.randn(2, 3, size, WIDTH) * 2 for size in (4, 5, 5))
    seen = torch.rand(2, 1, 4, 5) < 0.6
    seen[..., 0] = True
    if not masked:
        seen[:] = True
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf")) if masked else None
    out = Rule(scale, None, softcap).apply(query, key, value, mask)
    assert out.shape == query.shape
    for batch, head, at in [(b, h, t) for b in range(2) for h in range(3) for t in range(4)]:
        visible = seen[batch, 0, at]
        expected = attended(
            query[batch, head, at],
            key[batch, head][visible],
            value[batch, head][visible],
            WIDTH**-0.5 if scale is None else scale,
            softcap,
        )
        close(out[batch, head, at], expected, 1e-5)


def tree() -> tuple[Pack, dict[str, Contribution]]:
    """Virtual tokens, prefixes, both at once, the base; segments three deep and of all lengths."""
    prefix, long, some, other = (
        (torch.randn(LAYERS, KV_HEADS, tokens, WIDTH), torch.randn(LAYERS, KV_HEADS, tokens, WIDTH))
        for tokens in (4, 9, 9, 4)
    )
    contributions = {
        "virtual": Contribution(virtual=torch.randn(5, 32)),
        "prefix": Contribution(prefix=prefix),
        "both": Contribution(virtual=torch.randn(3, 32), prefix=long),
        "some layers": Contribution(
            virtual=torch.randn(2, 32), prefix=some, masked_prefix=(9, 6, 0)
        ),
        "other layers": Contribution(prefix=other, masked_prefix=(0, 4, 4)),
        "neither": Contribution(),
    }
    pack = Pack(contributions)
    for name in [*contributions, None, "both", "virtual"]:
        root = pack.add(name, range(6))
        middle = pack.add(name, range(2), root)
        pack.add(name, range(7), root)
        pack.add(name, range(1), middle)
        pack.add(name, range(3), middle)
    return pack, contributions


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("layer", [1, 2])
def test_packed_attention_equals_a_loop_over_tokens(
    window: int | None, softcap: float | None, layer: int
) -> None:
    pack, contributions = tree()
    count = len(pack.ids)
    query = torch.randn(HEADS, count, WIDTH)
    key, value = torch.randn(KV_HEADS, count, WIDTH), torch.randn(KV_HEADS, count, WIDTH)
    attention = PackedAttention(pack, torch.device("cpu"))
    # One object serves layers with a window and without.
    attention.attend(0, query, key, value, Rule(0.3, 2 if window is None else None, softcap))
    out = attention.attend(layer, query, key, value, Rule(0.3, window, softcap))
    assert out.shape == (count, HEADS, WIDTH)
    positions = pack.positions()
    for index, node in enumerate(pack.nodes):
        before = [
            spot
            for ancestor in pack.path(index)[:-1]
            for spot in range(
                pack.nodes[ancestor].start, pack.nodes[ancestor].start + pack.nodes[ancestor].length
            )
        ]
        prefix = contributions[node.adapter].prefix if node.adapter else None
        masked_prefix = contributions[node.adapter].masked_prefix if node.adapter else ()
        hidden = masked_prefix[layer] if masked_prefix else 0
        for offset in range(node.length):
            spots = [*before, *range(node.start, node.start + offset + 1)]
            for head in range(HEADS):
                group = head // (HEADS // KV_HEADS)
                keys, values = key[group][spots], value[group][spots]
                if prefix is not None:
                    keys = torch.cat([prefix[0][layer, group, hidden:], keys])
                    values = torch.cat([prefix[1][layer, group, hidden:], values])
                assert len(keys) + hidden == positions[node.start + offset] + 1
                if window is not None:
                    keys, values = keys[-window:], values[-window:]
                expected = attended(query[head, node.start + offset], keys, values, 0.3, softcap)
                close(out[node.start + offset, head], expected, 1e-5)


def test_padding_is_not_attended_to() -> None:
    pack, contributions = tree()
    count = len(pack.ids)
    query = torch.randn(HEADS, count, WIDTH, requires_grad=True)
    key, value = (torch.randn(KV_HEADS, count, WIDTH, requires_grad=True) for _ in range(2))
    prefixes = [
        part.requires_grad_(True)
        for contribution in contributions.values()
        for part in contribution.prefix or ()
    ]
    attention = PackedAttention(pack, torch.device("cpu"))
    attention.attend(0, query, key, value, Rule(None, 3, None)).sum().backward()
    leaves = [query, key, value, *prefixes]
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
    # Every head of every token hands on weights that sum to one, and padding none.
    handed_on = sum(float(leaf.grad.sum()) for leaf in [value, *prefixes[1::2]])
    assert handed_on == pytest.approx(count * HEADS * WIDTH, rel=1e-5)


@pytest.mark.parametrize("length", [1, 5, 20])
def test_without_a_pass_it_is_plain_causal_attention(
    length: int,
    architecture: str,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    base = make_base(architecture)
    prepare(base)
    prepare(base)  # the second time nothing happens
    assert base.model.config._attn_implementation == ATTENTION
    ids = torch.randint(3, 300, (2, length))
    with torch.no_grad():
        expected = plain_model(architecture)(ids).logits
        close(base.model(ids).logits, expected, 1e-5)
        cache = DynamicCache()  # with keys in a cache, too
        if length > 1:
            base.model(ids[:, : length // 2], past_key_values=cache)
        rest = base.model(ids[:, length // 2 :], past_key_values=cache).logits
        close(rest, expected[:, length // 2 :], 1e-5)


def test_gemma_2_with_its_soft_cap_and_window() -> None:
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=WIDTH,
        sliding_window=4,
        attn_logit_softcapping=0.8,
        query_pre_attn_scalar=1,
        attn_implementation="eager",
        initializer_range=0.3,
        pad_token_id=0,
    )
    model = Gemma2ForCausalLM(config).eval()
    ids = torch.randint(3, 300, (12,))
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
        base = Base(model, None, name="gemma2")
        pack = Pack({})
        root = pack.add(None, ids[:5].tolist())
        pack.add(None, ids[5:].tolist(), root)
        close(run_pack(base, pack, torch.arange(12)), expected, 1e-5)


@pytest.mark.parametrize(("block", "cost"), [(3, 0), (3, 1 << 40), (5, 30)])
def test_blocks_of_queries_change_nothing(
    block: int,
    cost: int,
    base: Base,
    adapters: dict[str, Any],
    make_rows: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [row for name in [None, *adapters] for row in make_rows(name, shared=5)]

    def run() -> tuple[Tensor, list[Tensor]]:
        contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
        losses, _ = token_losses(base, rows, contributions)
        parameters = [p for adapter in adapters.values() for p in adapter.parameters()]
        return losses, list(torch.autograd.grad(losses.sum(), parameters))

    monkeypatch.setattr(attention, "_BLOCK", 1 << 30)
    monkeypatch.setattr(attention, "_GROUP_COST", {"cpu": 1 << 40, "cuda": 0})
    whole, gradients = run()
    monkeypatch.setattr(attention, "_BLOCK", block)
    monkeypatch.setattr(attention, "_GROUP_COST", {"cpu": cost, "cuda": 0})
    losses, others = run()
    close(losses, whole, 1e-5)
    for ours, theirs in zip(others, gradients, strict=True):
        scale = float(theirs.abs().max())
        close(ours / scale, theirs / scale, 1e-5)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (1, [[1], [4], [0, 3], [2]]),
        (40, [[1, 4], [0, 3, 2]]),
        (1 << 40, [[1, 4, 0, 3, 2]]),
    ],
)
def test_blocks_of_about_one_size_go_together(
    cost: int, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_GROUP_COST", {"cpu": cost, "cuda": 0})
    sizes = [(3, 5), (10, 12), (2, 9), (3, 5), (9, 12)]
    assert attention._similar_groups(sizes, torch.device("cpu")) == expected
