"""Where virtual tokens and prefixes start from: a text, the vocabulary, or random numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.adapters.test_methods import build, equal, ids_of, virtual
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from onebase.adapters.adapter import Adapter
from onebase.adapters.prefix import flatten
from onebase.engine.forward import prepare, run_pack
from onebase.engine.pack import Pack
from onebase.errors import UsageError
from onebase.model.base import Base


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


@pytest.fixture
def base(make_base: Callable[..., Base]) -> Base:
    return make_base()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("prompt-tuning", {}),
        ("p-tuning", {}),
        ("p-tuning", {"encoder": "lstm", "hidden": 8, "encoder_layers": 1}),
    ],
)
def test_virtual_tokens_start_as_a_text(
    method: str, settings: dict[str, Any], architecture: str, make_base: Callable[..., Base]
) -> None:
    base = make_base(architecture)
    ids = ids_of(base)
    for count in (1, len(ids) - 1, len(ids), 2 * len(ids) + 3):
        adapter = build(base, method, virtual_tokens=count, **settings)
        tiled = [ids[index % len(ids)] for index in range(count)]
        # As the model itself embeds them: Gemma scales.
        with torch.no_grad():
            expected = base.embedding(torch.tensor(tiled))
        assert torch.equal(virtual(adapter), expected)


def test_init_text_stands_in_for_the_instruction(base: Base) -> None:
    given = build(base, "prompt-tuning", init_text="hello", virtual_tokens=2)
    assert equal(given, build(base, "prompt-tuning", text="hello", virtual_tokens=2))
    assert not equal(given, build(base, "prompt-tuning", virtual_tokens=2))


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "p-tuning-v2"])
def test_a_text_without_a_token(method: str, base: Base) -> None:
    with pytest.raises(UsageError) as caught:
        build(base, method, text="")
    assert caught.value.message == "The initial text '' has no tokens."
    assert caught.value.remedy == "Give init_text=…, or init=vocab."
    build(base, method, text="", init="vocab")
    build(base, method, text="", init="random")


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning"])
def test_virtual_tokens_start_as_tokens_of_the_vocabulary(method: str, base: Base) -> None:
    start = virtual(build(base, method, init="vocab", virtual_tokens=30))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ids = torch.randint(0, base.shape.vocabulary, (30,))
    assert torch.equal(start, base.embedding.weight[ids])


def test_random_virtual_tokens_spread_like_the_embeddings(base: Base) -> None:
    start = virtual(build(base, "prompt-tuning", init="random", virtual_tokens=500))
    # Five standard errors of 500 * 32 draws.
    deviation = float(base.embedding.weight.std())
    assert float(start.std()) == pytest.approx(deviation, rel=5 / (2 * 16000) ** 0.5)
    assert float(start.mean()) == pytest.approx(0, abs=5 * deviation / 16000**0.5)


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_a_p_tuning_encoder_learns_from_its_first_step(encoder: str, base: Base) -> None:
    adapter = build(base, "p-tuning", encoder=encoder, hidden=8, virtual_tokens=4)
    before = virtual(adapter)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        tokens = adapter.contribution().virtual
        assert tokens is not None
        tokens.square().sum().backward()
        optimizer.step()
    # What is learned is added to the start.
    learned = adapter.parts()
    alone = build(base, "p-tuning", encoder=encoder, hidden=8, virtual_tokens=4, init="random")
    start = learned.pop("prompt.start")
    alone.load_state_dict(learned)
    torch.testing.assert_close(virtual(adapter), start + virtual(alone))
    # The last layer starts at zero, so the others learn from the second step on.
    assert all(bool(parameter.grad.any()) for parameter in adapter.parameters())  # type: ignore[union-attr]
    assert not torch.equal(virtual(adapter), before)


def test_a_random_p_tuning_encoder_stands_alone(base: Base) -> None:
    adapter = build(base, "p-tuning", init="random")
    assert adapter.prompt is not None
    assert adapter.prompt.start is None
    assert virtual(adapter).shape == (20, 32)
    # Equations 5 and 6 by hand: the MLP over its embeddings.
    weights = adapter.parts()
    hidden = weights["prompt.embedding.weight"]
    for layer in (0, 2, 4):
        hidden = (
            hidden @ weights[f"prompt.mlp.{layer}.weight"].T + weights[f"prompt.mlp.{layer}.bias"]
        )
        hidden = hidden.relu() if layer < 4 else hidden
    torch.testing.assert_close(virtual(adapter), hidden, atol=1e-6, rtol=0)
    assert float(hidden.abs().max()) > 0.01


def rows_logits(base: Base, adapter: Adapter, ids: list[int]) -> Tensor:
    pack = Pack({"a": adapter.contribution()})
    pack.add("a", ids)
    with torch.no_grad():
        return run_pack(base, pack, torch.arange(len(ids)))


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_prefix_started_from_a_text_is_that_text(
    projection: bool,
    prepared: bool,
    architecture: str,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    base = make_base(architecture)
    if prepared:  # with our attention in the model instead of its own
        prepare(base)
    text = ids_of(base)
    assert len(text) > 9  # longer than Gemma's window
    row = list(range(40, 52))
    adapter = build(base, "p-tuning-v2", virtual_tokens=len(text), projection=projection, hidden=8)
    with torch.no_grad():
        expected = plain_model(architecture)(torch.tensor([text + row])).logits[0, len(text) :]
    ours = rows_logits(base, adapter, row)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_a_prefix_has_the_base_s_keys_and_values(base: Base) -> None:
    text = ids_of(base)
    short, long = (
        build(base, "p-tuning-v2", virtual_tokens=count).contribution().prefix
        for count in (3, len(text) + 3)
    )
    assert short is not None
    assert long is not None
    with torch.no_grad():
        cache = base.model(torch.tensor([text + text[:3]]), use_cache=True).past_key_values
    for layer in range(3):
        for kind, expected in enumerate((cache.layers[layer].keys, cache.layers[layer].values)):
            close = {"atol": 1e-5, "rtol": 0}
            torch.testing.assert_close(long[kind][layer].detach(), expected[0], **close)
            torch.testing.assert_close(short[kind][layer].detach(), expected[0][:, :3], **close)


def test_a_prefix_from_the_vocabulary_is_some_text(base: Base) -> None:
    adapter = build(base, "p-tuning-v2", init="vocab", virtual_tokens=6, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        ids = torch.randint(0, base.shape.vocabulary, (6,)).tolist()
    with torch.no_grad():
        expected = base.model(torch.tensor([[*ids, 9, 8, 7]])).logits[0, 6:]
    ours = rows_logits(base, adapter, [9, 8, 7])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("projection", [False, True])
def test_a_random_prefix(projection: bool, base: Base) -> None:
    adapter = build(base, "p-tuning-v2", init="random", projection=projection, virtual_tokens=7)
    assert adapter.prefix is not None
    assert adapter.prefix.start is None
    contribution = adapter.contribution()
    assert contribution.prefix is not None
    keys, values = contribution.prefix
    assert keys.shape == values.shape == (3, 2, 7, 8)
    assert contribution.prefix_tokens == 7
    assert contribution.virtual_tokens == 0
    assert bool(keys.any())
    assert bool(values.any())
    assert not torch.equal(keys, values)
    # One row per token: for each layer the keys of its heads, then the values.
    rows = adapter.prefix()
    assert torch.equal(keys[2, 1, 4], rows[4, (2 * 2 * 2 + 1) * 8 :][:8])
    assert torch.equal(values[1, 0, 6], rows[6, (1 * 2 * 2 + 2) * 8 :][:8])
    assert torch.equal(flatten(keys, values), adapter.prefix())  # there and back


def test_the_projection_may_be_of_another_width_than_the_base() -> None:
    """kv_heads * head_dim is not the hidden size, nor heads * head_dim."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        pad_token_id=0,
    )
    base = Base(LlamaForCausalLM(config), None, name="narrow")
    adapter = build(base, "p-tuning-v2", init="random", projection=True, virtual_tokens=3)
    assert adapter.prefix is not None
    assert isinstance(adapter.prefix.transform, nn.Sequential)
    assert adapter.prefix().shape == (3, 2 * 2 * 2 * 10)
    assert rows_logits(base, adapter, [1, 2, 3]).shape == (3, 50)
