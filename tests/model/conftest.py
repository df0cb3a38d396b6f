"""An empty cache, no network, and the tiny Llama folder again as a GGUF file."""

import json
import re
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from torch import Tensor

from onebase import language
from onebase.language import Language
from onebase.model.base import Base

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    """English, whatever the locale and whatever another test has set."""
    fresh: ContextVar[Language | None] = ContextVar("language", default="en")
    monkeypatch.setattr(language, "_current", fresh)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache's models; it is not there yet."""
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def left_in(cache: Path) -> Callable[[], list[str]]:
    """What an error left in the cache, but for the locks."""

    def names() -> list[str]:
        if not cache.exists():
            return []
        return sorted(file.name for file in cache.rglob("*") if file.suffix != ".lock")

    return names


@pytest.fixture(scope="session")
def write_gguf(tiny_folder: Path) -> Callable[..., Path]:
    """Write the tiny Llama as llama.cpp does, without the tensors or settings named in `leave`."""
    base = Base.load(str(tiny_folder))

    def write(file: Path, *, pre: str = "smollm", leave: str | None = None) -> Path:
        writer = GGUFWriter(file, "llama")
        _add_settings(writer, base.model.config)
        if leave != "tokenizer":
            _add_tokenizer(writer, base.tokenizer, pre)
        for name, weight in base.model.state_dict().items():
            if name != leave:
                writer.add_tensor(_gguf_name(name), _permuted(name, weight, base).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return write


def _add_settings(writer: GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any, pre: str) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["content"] for token in content["added_tokens"]}
    vocabulary = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    inside = LAYER.fullmatch(stem)
    if inside:
        return f"blk.{inside[1]}.{NAMES[inside[2]]}.weight"
    return f"{NAMES[stem]}.weight"


def _permuted(name: str, weight: Tensor, base: Base) -> Tensor:
    """Queries and keys with the halves of each rotation side by side, as llama.cpp has them."""
    heads = {"q_proj": base.shape.heads, "k_proj": base.shape.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    rows, columns = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns).contiguous()
