"""Unsupported architectures are refused by name; the text part of multimodal Gemma 3 can be a base."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_tokenizer
from transformers import (
    BartConfig,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    MambaConfig,
    Qwen2VLConfig,
    RwkvConfig,
    T5Config,
    ViTConfig,
    WhisperConfig,
)

import onebase
from onebase.adapters.peft_format import load_adapter
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.forward import prepare
from onebase.engine.sampling import Sampling
from onebase.errors import CorruptFileError, OnebaseError, UsageError
from onebase.model.base import Base

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LATENT: dict[str, Any] = {
    **SIZES,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
LATENT.pop("head_dim")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config, "an encoder-decoder model"),
        (BartConfig, "an encoder-decoder model"),
        (WhisperConfig, "an encoder-decoder model"),
        (Qwen2VLConfig, "images"),
        (LlavaConfig, "images"),
        (ViTConfig, "is not a causal language model"),
        (MambaConfig, "no num_attention_heads"),
        (RwkvConfig, "no num_attention_heads"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_type(
    config: Any, reason: str, tmp_path: Path
) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=reason) as caught:
        Base.load(str(tmp_path))
    assert f"is of type {config.model_type}" in caught.value.message
    assert "causal language model" in caught.value.remedy
    assert "Fetch" not in caught.value.remedy


def test_a_type_that_transformers_does_not_know_is_refused_by_it(tmp_path: Path) -> None:
    settings = {"model_type": "own-kind", "auto_map": {"AutoModelForCausalLM": "modeling.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(UsageError, match=r"own-kind.*does not support this type.*is not run"):
        Base.load(str(tmp_path))


def test_keys_and_values_of_two_sizes_are_refused_before_any_work(tmp_path: Path) -> None:
    DeepseekV3Config(**LATENT, v_head_dim=8).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="keys have head size 16 and its values 8"):
        Base.load(str(tmp_path))


def test_a_damaged_config_is_damage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CorruptFileError, match=r"config\.json"):
        Base.load(str(tmp_path))


def widened(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def continued(model: Any, prompt: list[int]) -> list[int]:
    with torch.no_grad():
        said = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
    ids: list[int] = said[0, len(prompt) :].tolist()
    return ids


def answers_as(model: Any, base: Base) -> None:
    """The engine says what `model` says."""
    prompt = Template(base.tokenizer).prompt("where is the parcel?")
    engine = Engine(base)
    request = engine.add_request("base", prompt, Sampling(max_tokens=8))
    while not engine.idle:
        engine.step()
    said = continued(model, prompt)
    assert list(request.tokens) == (said[:-1] if said[-1] == 2 else said)


def trains_and_answers(model: Any, base: Base, folder: Path, method: str) -> None:
    """What is trained on the base answers as `model` does with the deltas in its weights, behind the
    virtual tokens.
    """
    rows = [{"input": f"where is {at}?", "output": "on its way"} for at in range(12)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = onebase.Job("t", file, method=method, set={"epochs": 1})
    stored = onebase.train([job], base=base, workspace=onebase.Workspace(folder / "w"))
    engine = onebase.Engine(base, stored)
    prompt = engine.tasks["t"].template.prompt("where?")
    request = engine.add_request("t", prompt, Sampling(max_tokens=4))
    while not engine.idle:
        engine.step()
    brought = load_adapter(stored[0].path, base).eval().contribution()
    ids, virtual = list(prompt), torch.empty(0, base.shape.hidden)
    if brought.virtual is not None:
        virtual = brought.virtual.detach()
    layers = "model.language_model.layers." if hasattr(model.model, "language_model") else ""
    with torch.no_grad():
        for name, delta in brought.deltas.items():
            linear = model.get_submodule(name.replace("model.layers.", layers or "model.layers."))
            linear.weight += delta.scale * delta.b @ delta.a
    for _ in range(4):
        with torch.no_grad():
            words = torch.cat([virtual, model.get_input_embeddings()(torch.tensor(ids))])
            ids.append(int(model(inputs_embeds=words[None]).logits[0, -1].argmax()))
        if ids[-1] == 2:
            ids.pop()
            break
    assert list(request.tokens) == ids[len(prompt) :]


@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_latent_attention_with_keys_and_values_of_one_size_is_answered(
    method: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = widened(DeepseekV3ForCausalLM(DeepseekV3Config(**LATENT, v_head_dim=16)))
    base = Base.load(saved(model, tmp_path / "base"))
    assert base.shape.head_dim == 16
    answers_as(model, base)
    trains_and_answers(model, base, tmp_path, method)


def test_a_prefix_of_latent_attention_is_refused_before_the_first_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = widened(DeepseekV3ForCausalLM(DeepseekV3Config(**LATENT, v_head_dim=16)))
    base = Base.load(saved(model, tmp_path / "base"))
    with pytest.raises(UsageError, match="does not cache keys and values") as caught:
        trains_and_answers(model, base, tmp_path, "p-tuning-v2")
    assert "lora" in caught.value.remedy


def test_keys_of_another_size_than_the_config_says_are_refused() -> None:
    torch.manual_seed(0)
    model = widened(DeepseekV3ForCausalLM(DeepseekV3Config(**LATENT, v_head_dim=16)))
    base = Base(model, tiny_tokenizer(), name="tiny-deepseek")
    base.shape = replace(base.shape, head_dim=8)
    with pytest.raises(OnebaseError, match=r"keys and values are \(4, 16\)"):
        prepare(base)


@pytest.fixture
def gemma_with_images() -> Any:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {**SIZES, "sliding_window": 8, "layer_types": None}
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299
    )
    return widened(Gemma3ForConditionalGeneration(config))


def test_the_text_part_of_gemma_3_with_images_is_a_base(
    gemma_with_images: Any, tmp_path: Path
) -> None:
    base = Base.load(saved(gemma_with_images, tmp_path / "base"))
    assert base.model.config.model_type == "gemma3_text"
    tokens = torch.tensor([[5, 40, 41, 7, 99, 250, 3, 17, 64, 122, 30, 31]])
    with torch.no_grad():
        torch.testing.assert_close(
            base.model(tokens).logits, gemma_with_images(tokens).logits, atol=1e-5, rtol=0
        )
    answers_as(gemma_with_images, base)
    trains_and_answers(gemma_with_images, base, tmp_path, "lora")
