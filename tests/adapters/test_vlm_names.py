"""Adapters of the text part of Gemma 3, applied to the whole model that transformers loads for PEFT."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.adapters.test_tensor_names import ours, theirs
from tests.conftest import tiny_tokenizer
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from onebase.adapters.adapter_folder import AdapterFolder
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.errors import CorruptFileError
from onebase.model.base import Base

TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 8,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 2}),
    "dora": ("lora", {"rank": 2, "use_dora": True}),
    "lora-some": (
        "lora",
        {
            "rank": 2,
            "target": "attention",
            "layers": "top:1",
            "rank_pattern": {"o_proj": 3},
            "alpha_pattern": {"q_proj": 5.0},
        },
    ),
    "ia3": ("ia3", {}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Gemma 3 that also reads images."""
    folder = tmp_path_factory.mktemp("gemma")
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=299
    )
    model = Gemma3ForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def peft_base(whole: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)


@pytest.mark.parametrize("kind", SETTINGS)
def test_peft_loads_it_over_the_whole_model(kind: str, whole: Path, tmp_path: Path) -> None:
    base = Base.load(str(whole), device="cpu")
    method, settings = SETTINGS[kind]
    adapter = build_adapter(base, method, settings, init_text="hello", seed=0)
    torch.manual_seed(3)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    expected = ours(base, adapter.eval())
    save_adapter(adapter, tmp_path, base)
    # A tensor that it misses or does not expect would be a warning, and so an error.
    loaded = theirs(peft.PeftModel.from_pretrained(peft_base(whole), str(tmp_path)))
    torch.testing.assert_close(loaded, expected, atol=1e-4, rtol=0)
    assert float((loaded - theirs(peft_base(whole))).abs().max()) > 0.1
    read = ours(base, load_adapter(tmp_path, base).eval())
    torch.testing.assert_close(read, expected, atol=1e-6, rtol=0)


FOREIGN: dict[str, Callable[[], Any]] = {
    "a pattern": lambda: peft.LoraConfig(
        r=2,
        target_modules=r".*language_model.*\.(q_proj|down_proj)",
        rank_pattern={r"language_model\.layers\.1\.self_attn\.q_proj": 3},
    ),
    "names": lambda: peft.LoraConfig(r=2, target_modules=["gate_proj", "o_proj"]),
    "some layers": lambda: peft.LoraConfig(
        r=2, target_modules=["gate_proj"], layers_to_transform=[1], layers_pattern="layers"
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=["gate_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
}


TENSORS = {"a pattern": 8, "names": 8, "some layers": 2, "ia3": 4}


def saved(model: Any, config: Any, folder: Path) -> Any:
    """An adapter of PEFT's with random weights, saved in `folder`."""
    torch.manual_seed(5)
    trained = peft.get_peft_model(model, config)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    trained.save_pretrained(folder)
    return trained


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_peft_trained_on_the_whole_model_is_read(
    kind: str, whole: Path, tmp_path: Path
) -> None:
    model = saved(peft_base(whole), FOREIGN[kind](), tmp_path)
    keys = list(load_file(tmp_path / "adapter_model.safetensors"))
    assert len(keys) == TENSORS[kind]
    assert [key for key in keys if ".language_model.layers." not in key] == []
    base = Base.load(str(whole), device="cpu")
    found = ours(base, load_adapter(AdapterFolder(tmp_path, foreign=True), base).eval())
    torch.testing.assert_close(found, theirs(model), atol=1e-4, rtol=0)
    assert float((found - theirs(peft_base(whole))).abs().max()) > 0.1


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_peft_trained_on_the_whole_model_is_read_over_the_text_part_s_own_files(
    kind: str, whole: Path, tmp_path: Path
) -> None:
    model = saved(peft_base(whole), FOREIGN[kind](), tmp_path / "adapter")
    base = Base.load(str(whole), device="cpu")
    base.model.save_pretrained(tmp_path / "text")
    for file in whole.glob("*token*"):
        shutil.copy(file, tmp_path / "text")
    alone = Base.load(str(tmp_path / "text"), device="cpu")
    assert not alone.is_text_part
    adapter = load_adapter(AdapterFolder(tmp_path / "adapter", foreign=True), alone).eval()
    torch.testing.assert_close(ours(alone, adapter), theirs(model), atol=1e-4, rtol=0)


def test_a_layer_under_both_names_is_refused(whole: Path, tmp_path: Path) -> None:
    base = Base.load(str(whole), device="cpu")
    save_adapter(build_adapter(base, "lora", {"rank": 2}, init_text="", seed=0), tmp_path, base)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    first = min(tensors)
    tensors[first.replace(".language_model.", ".", 1)] = tensors[first] + 1
    save_file(tensors, file)
    with pytest.raises(CorruptFileError, match="under two names"):
        load_adapter(tmp_path, base)


def test_what_was_trained_on_the_text_part_alone_is_read(whole: Path, tmp_path: Path) -> None:
    base = Base.load(str(whole), device="cpu")
    text = Base.load(str(whole), device="cpu").model
    model = saved(text, peft.LoraConfig(r=2, target_modules=["q_proj"]), tmp_path)
    found = ours(base, load_adapter(AdapterFolder(tmp_path, foreign=True), base).eval())
    torch.testing.assert_close(found, theirs(model), atol=1e-4, rtol=0)
