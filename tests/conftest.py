"""Tiny, randomly initialised bases of several architectures, made on the fly."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from onebase import language
from onebase.model.base import Base

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _language_of_the_locale() -> Iterator[None]:
    """A test's `--lang` must not speak in the next test."""
    token = language._current.set(None)
    yield
    language._current.reset(token)


ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "sliding_window": 8,
            "tie_word_embeddings": False,  # tied and random, it would only repeat its input
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "glm": (GlmConfig, GlmForCausalLM, {}),
    "glm4": (Glm4Config, Glm4ForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 8}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "phi3": (Phi3Config, Phi3ForCausalLM, {"partial_rotary_factor": 0.5}),
}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(
    texts: Sequence[str] = ("the parcel is on its way", "hello, how are you today?"),
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        chat_template=CHATML,
    )


def tiny_model(architecture: str, seed: int = 0) -> torch.nn.Module:
    config, model, extra = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    made = model(
        config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **extra,
        )
    )
    # Wider than the library's initialisation, so that attention and deltas matter.
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.fixture
def make_base() -> Callable[..., Base]:
    """A fresh tiny base of an architecture; equal seeds give equal weights."""

    def make(architecture: str = "llama", seed: int = 0) -> Base:
        return Base(tiny_model(architecture, seed), tiny_tokenizer(), name=f"tiny-{architecture}")

    return make


def length_bound(kind: str, seed: int = 0) -> torch.nn.Module:
    """A tiny model whose rotary embedding changes with texts of more than 40 tokens."""
    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    made: torch.nn.Module
    if kind == "longrope":
        rope = {"rope_type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [2.0, 4.0]}
        made = Phi3ForCausalLM(
            Phi3Config(
                **sizes,
                max_position_embeddings=160,
                original_max_position_embeddings=40,
                partial_rotary_factor=0.5,
                rope_parameters={**rope, "rope_theta": 1e4, "factor": 4.0},
            )
        )
    else:
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        config = LlamaConfig(**sizes, max_position_embeddings=40, rope_parameters=rope)
        made = LlamaForCausalLM(config)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.fixture
def length_bound_model() -> Callable[..., torch.nn.Module]:
    """A tiny model of rope type `longrope` or `dynamic` with a border of 40 tokens."""
    return length_bound


@pytest.fixture
def length_bound_base() -> Callable[..., Base]:
    """The same as a base."""

    def make(kind: str, seed: int = 0) -> Base:
        return Base(length_bound(kind, seed), tiny_tokenizer(), name=f"tiny-{kind}")

    return make


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def plain_model() -> Callable[..., torch.nn.Module]:
    """The same weights as `make_base`, with transformers' own attention."""
    return tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama base as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("tiny-base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def unlike_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another base, as a folder: other weights, vocabulary, template and a longer context."""
    folder = tmp_path_factory.mktemp("unlike-base")
    model: Any = tiny_model("llama", seed=7)
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer(["Monday and Tuesday", "every lamp is broken"])
    tokenizer.chat_template = (
        "{% for message in messages %}({{ message['role'] }}) {{ message['content'] }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}(model) {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder
