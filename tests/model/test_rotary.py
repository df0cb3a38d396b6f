"""Rotary embeddings that depend on the longest text: fixed, limited, and exact within the limit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.model.rotary import RotaryLimit, fix_rotary

BORDER = 40


def ids(length: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(3, 300, (1, length), generator=drawn)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_the_border_is_where_transformers_changes_the_frequencies(
    kind: str, length_bound_model: Callable[..., Any]
) -> None:
    """A text of BORDER tokens has the frequencies of short ones, one token more has others."""
    model = length_bound_model(kind)
    rotary = model.model.rotary_emb
    short = rotary.inv_freq.clone()
    model(ids(BORDER))
    assert torch.equal(rotary.inv_freq, short)
    model(ids(BORDER + 1))
    assert not torch.equal(rotary.inv_freq, short)
    limit = fix_rotary(model)
    assert limit == RotaryLimit(kind, BORDER)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_base_has_the_frequencies_of_short_texts_whatever_was_asked(
    kind: str, length_bound_model: Callable[..., Any], length_bound_base: Callable[..., Base]
) -> None:
    plain = length_bound_model(kind)
    expected = plain(ids(BORDER)).logits
    model = length_bound_base(kind).model
    assert torch.equal(model(ids(BORDER)).logits, expected)
    model(ids(2 * BORDER))
    assert torch.equal(model(ids(BORDER)).logits, expected)
    plain(ids(2 * BORDER))  # transformers keeps what it has grown to
    used = Base(plain, object(), name="used")
    assert torch.equal(used.model(ids(BORDER)).logits, expected)


def test_each_kind_of_layer_has_a_border(length_bound_model: Callable[..., Any]) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            head_dim=8,
            max_position_embeddings=BORDER,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": rope,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        )
    ).eval()
    expected = model(ids(BORDER)).logits
    model(ids(BORDER + 8))
    assert fix_rotary(model) == RotaryLimit("dynamic", BORDER)
    model(ids(BORDER + 16))
    assert torch.equal(model(ids(BORDER)).logits, expected)
    assert model.config.rope_parameters["full_attention"]["rope_type"] == "dynamic"


def test_other_rotary_embeddings_have_no_border(make_base: Callable[..., Base]) -> None:
    base = make_base("llama")
    assert base.rotary is None
    assert base.context == base.model.config.max_position_embeddings
    base.require_room(base.context)
    with pytest.raises(
        UsageError, match="tokens, including virtual tokens, more than tiny-llama's"
    ):
        base.require_room(base.context + 1)


def test_the_border_is_the_context(length_bound_base: Callable[..., Base]) -> None:
    base = length_bound_base("longrope")
    assert base.model.config.max_position_embeddings > BORDER
    assert base.context == BORDER
    assert base.context_text == "tiny-longrope's context of 40 (rope type longrope)"
    base.require_room(BORDER)
    with pytest.raises(UsageError, match=r"41 tokens.*tiny-longrope.*type longrope: beyond 40"):
        base.require_room(BORDER + 1)
