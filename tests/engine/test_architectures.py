"""Architectures that nobody proved beforehand: tried against their own pass, or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import onebase
from onebase.adapters.methods import build_adapter
from onebase.data.template import Template
from onebase.engine.forward import TESTED_TYPES, prepare
from onebase.engine.sampling import Sampling
from onebase.errors import OnebaseError, UsageError
from onebase.model.base import Base

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
TRIED: dict[str, dict[str, Any]] = {
    "gemma2": GROUPED,  # soft caps, sliding windows
    "cohere": GROUPED,  # attention and feed-forward side by side, scaled logits
    "mixtral": GROUPED,
    "granite": GROUPED,  # scaled embeddings and residuals
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},  # learned positions
    "gpt2": {**SIZES, "n_embd": 32, "n_layer": 3, "n_head": 4},  # no linear layers of torch's
}
# State-space layers, sinks in the attention, positions in the scores.
REFUSED: dict[str, dict[str, Any]] = {
    "mamba": SIZES,
    "gpt_oss": GROUPED,
    "bloom": {"vocab_size": 300, "hidden_size": 32, "n_layer": 3, "n_head": 4},
}


def tiny(kind: str, sizes: dict[str, Any], tokenizer: Any) -> Base:
    config = type(AutoConfig.for_model(kind))(**sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return Base(model.eval(), tokenizer, name=f"tiny-{kind}")


@pytest.mark.parametrize("kind", list(TRIED))
def test_another_architecture_serves_when_its_pass_is_its_own(
    kind: str, make_base: Callable[..., Base]
) -> None:
    assert kind not in TESTED_TYPES
    base = tiny(kind, TRIED[kind], make_base().tokenizer)
    plain = tiny(kind, TRIED[kind], base.tokenizer).model  # with transformers' own attention
    ids = base.tokenizer("the parcel is on its way", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = base.model(ids).logits
    engine = onebase.Engine(base)
    adapter = build_adapter(base, "p-tuning-v2", {"virtual_tokens": 3}, init_text="hello", seed=0)
    engine.tasks.load("it", adapter, Template(base.tokenizer))
    prompt = engine.tasks["base"].template.prompt("hello")
    keys, values = engine.tasks["it"].contribution.prefix or ()
    requests = [engine.add_request(name, prompt, Sampling(max_tokens=6)) for name in ("it", "base")]
    while not engine.idle:
        engine.step()
    for request, prefix in zip(requests, ((keys, values), None), strict=True):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 6 and tokens[-1] != 2:
            tokens.append(int(last_logits(plain, tokens, prefix).argmax()))
        expected = tokens[len(prompt) :]
        assert request.tokens == (expected[:-1] if expected[-1] == 2 else expected)
    with torch.no_grad():
        torch.testing.assert_close(base.model(ids).logits, before, atol=1e-5, rtol=0)


def last_logits(
    model: Any, ids: list[int], prefix: tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    """transformers' logits of the last token, behind a prefix of keys and values."""
    cache = DynamicCache(config=model.config)
    if prefix is not None:
        for layer, (keys, values) in enumerate(zip(*prefix, strict=True)):
            cache.update(keys[None], values[None], layer)
    before = cache.get_seq_length()
    with torch.no_grad():
        logits: torch.Tensor = model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, before + len(ids), dtype=torch.long),
            past_key_values=cache,
        ).logits[0, -1]
    return logits


@pytest.mark.parametrize("kind", list(REFUSED))
def test_one_whose_pass_differs_is_refused_by_its_type(
    kind: str, make_base: Callable[..., Base]
) -> None:
    base = tiny(kind, REFUSED[kind], make_base().tokenizer)
    for _ in range(2):  # and again: nothing of the first try counts as done
        with pytest.raises(OnebaseError, match=f"type {kind}") as caught:
            prepare(base)
        assert "llama" in caught.value.remedy


def test_no_linear_layer_is_told_to_lora_alone(make_base: Callable[..., Base]) -> None:
    base = tiny("gpt2", TRIED["gpt2"], make_base().tokenizer)
    with pytest.raises(UsageError, match="no linear layer"):
        build_adapter(base, "lora", {}, init_text="x", seed=0)
