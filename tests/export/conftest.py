"""Tiny models and tokenizers of every family supported for GGUF, and stored adapters."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.export.eos import AnswerEnds, answer_ends
from onebase.export.gguf_files import write_model
from onebase.model.base import Base

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA3 = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 4,
    "num_hidden_layers": 6,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
PERIOD_2 = ["sliding_attention", "full_attention", "sliding_attention"]
# Family: model, configuration, changes of it, tokenizer.
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}, "byte-level"),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}, "digits"),
    "llama-biased": (
        LlamaForCausalLM,
        LlamaConfig,
        {"attention_bias": True, "mlp_bias": True},
        "byte-level",
    ),
    "llama-spaces": (LlamaForCausalLM, LlamaConfig, {"head_dim": 16}, "sentencepiece-prefix"),
    "llama3": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3_ROPE}, "llama3"),
    "llama-linear": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        "byte-level",
    ),
    "llama-yarn": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": YARN}, "byte-level"),
    "qwen2-yarn": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"rope_parameters": {**YARN, "attention_factor": 1.5}},
        "qwen",
    ),
    "qwen3-yarn": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"head_dim": 16, "rope_parameters": {**YARN, "factor": 3.0, "beta_fast": 32}},
        "qwen",
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}, "qwen"),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}, "qwen"),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, GEMMA3, "sentencepiece"),
    "gemma3-period-2": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {**GEMMA3, "num_hidden_layers": 3, "layer_types": PERIOD_2},
        "sentencepiece",
    ),
}
# What onebase reads from a GGUF whole.
READABLE = tuple(name for name in FAMILIES if name != "llama-spaces")
CORPUS = (
    "the parcel is on its way",
    "hello, how are you today? it's 12 o'clock",
    "  two  spaces,   three\n\n\tand a tab",
    "晚上睡不着应该怎么办？",
)
TEXTS = (
    "The parcel, 12  days   ago, in 2024: it's   on\n\n its way!  ",
    "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n",
    "晚上好 😀 naïve\tcafé",
    "  leading spaces",
    "a",
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>"]
TOKENS = torch.tensor([[5, 40, 41, 7, 99, 250, 3, 17, 64, 122, 30, 31]])


@pytest.fixture
def tokens() -> torch.Tensor:
    """A row of token ids, [1, tokens]."""
    return TOKENS


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=READABLE)
def readable(request: pytest.FixtureRequest) -> str:
    """A family that onebase reads back from GGUF whole."""
    return str(request.param)


@pytest.fixture
def texts() -> tuple[str, ...]:
    """Texts that different tokenizers cut differently."""
    return TEXTS


@pytest.fixture
def make_tokenizer() -> Callable[[str], PreTrainedTokenizerFast]:
    """A tokenizer trained on CORPUS with one of the ways to cut a text."""
    return tiny_tokenizer


@pytest.fixture
def make_family() -> Callable[..., Base]:
    """A tiny random base of a family, with changes of its configuration."""

    def make(family: str, **changes: Any) -> Base:
        model, config, own, tokenizer = FAMILIES[family]
        torch.manual_seed(0)
        settings: dict[str, Any] = {
            "vocab_size": 640,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        made = model(config(**(settings | own | changes)))
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        base = Base(made.eval(), tiny_tokenizer(tokenizer), name=f"tiny-{family}")
        if tokenizer == "qwen":
            # As in Qwen's generation config. transformers gives every reloaded Qwen tokenizer an
            # <|endoftext|>, and llama.cpp ends at any token of that name.
            ends = base.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
            made.generation_config.eos_token_id = ends
        return base

    return make


@pytest.fixture
def make_lora() -> Callable[..., Adapter]:
    """A random LoRA on every linear layer, as if it had been trained."""

    def make(base: Base, method: str = "lora", **settings: Any) -> Adapter:
        adapter = build_adapter(base, method, settings, init_text="hello, you", seed=1)
        torch.manual_seed(1)
        for parameter in adapter.parameters():
            parameter.data += torch.randn_like(parameter) * 0.2
        return adapter.eval()

    return make


@pytest.fixture
def engine_logits() -> Callable[[Base, Contribution], torch.Tensor]:
    """The engine's logits of TOKENS with a contribution, [tokens, vocabulary]."""

    def logits(base: Base, contribution: Contribution) -> torch.Tensor:
        pack = Pack({"it": contribution})
        node = pack.nodes[pack.add("it", tuple(TOKENS[0].tolist()))]
        with torch.no_grad():
            return run_pack(base, pack, torch.arange(node.start, node.start + node.length))

    return logits


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(Workspace(tmp_path / "ws"))


@pytest.fixture
def keep(store: AdapterStore, tmp_path: Path) -> Callable[..., StoredAdapter]:
    """Store an adapter under a task's name, its base saved as a folder."""

    def put(base: Base, adapter: Adapter, task: str = "support", **record: Any) -> StoredAdapter:
        folder = tmp_path / base.name
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        base.path = folder
        return store.add(
            task,
            lambda target: save_adapter(adapter, target, base),
            {
                "base": str(folder),
                "base_fingerprint": base.fingerprint,
                "precision": "fp32",
                "method": adapter.method,
                **record,
            },
        )

    return put


def bare_ends(base: Base) -> AnswerEnds:
    """The ends of the base's own answers."""
    return answer_ends(base, Template(base.tokenizer))


def written(base: Base, file: Path, *, name: str = "m", kind: str = "f32") -> list[str]:
    """The notes on `base` written to `file` as a GGUF with its own ends."""
    return write_model(base, file, name=name, kind=kind, ends=bare_ends(base))


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    made = _sentencepiece(kind) if kind.startswith("sentencepiece") else _byte_level(kind)
    names = {"pad_token": "<pad>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=CHATML, **names)


def _byte_level(kind: str) -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    numbers = {"qwen": r"\p{N}", "llama3": r"\p{N}{1,3}"}.get(kind)
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    if numbers is not None:
        cut = pre_tokenizers.Split(Regex(split % numbers), behavior="isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, bare])
    elif kind == "digits":
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    else:
        made.pre_tokenizer = byte_level
    if kind == "qwen":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, _trainer(400, alphabet))
    if kind == "qwen":
        made.add_tokens(["<think>"])  # beyond the vocabulary, and no control token
        made.add_special_tokens(["<|endoftext|>"])
    return made


def _sentencepiece(kind: str) -> Tokenizer:
    spaces = normalizers.Replace(" ", "▁")
    learned = Tokenizer(models.BPE())
    learned.normalizer = spaces
    learned.train_from_iterator(CORPUS, _trainer(300, []))
    own = learned.get_vocab()
    order = sorted(own, key=own.__getitem__)[len(SPECIAL) :]
    tokens = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *order]
    merges = [tuple(pair) for pair in _merges(learned)]
    made = Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(tokens)},
            merges,
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    made.normalizer = spaces
    if kind == "sentencepiece-prefix":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.add_special_tokens([*SPECIAL, "<unk>"])
    made.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return made


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges


def _trainer(size: int, alphabet: list[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
