"""An empty cache, no network, the tiny Llama folder again as a GGUF file, and tiny ChatGLMs."""

import json
import re
import shutil
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
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


CORPUS = (
    "你好，很高兴见到你。",
    "晚上睡不着应该怎么办？",
    "订单 12345 已于 2024 年发货。",
    "[Round 1]\n\n问：你好\n\n答：",
    "the parcel is on its way",
    "hello, how are you today?",
    "people like soap; leopards like people",
)


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokenizer.model` with ChatGLM's ids of <unk>, <s>, </s>, bytes for what it doesn't know,
    and text left as it is. "eop" and "sop" are among its pieces.
    """
    prefix = tmp_path_factory.mktemp("sentencepiece") / "tokenizer"
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=420,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["eop", "sop"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture
def write_chatglm(tmp_path: Path, sentencepiece_model: Path) -> Callable[..., Path]:
    """Write a tiny random ChatGLM in the original layout: of a `generation`, 2 or 3, its weights
    as `bin` or `safetensors` of a type, with changes of config.json.
    """

    def write(
        generation: int = 2,
        form: str = "bin",
        kind: torch.dtype = torch.float16,
        name: str = "chatglm",
        **changes: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        owner = f"THUDM/chatglm{generation}-6b"
        config = {
            "_name_or_path": owner,
            "model_type": "chatglm",
            "architectures": ["ChatGLMModel"],
            "auto_map": {
                "AutoConfig": "configuration_chatglm.ChatGLMConfig",
                "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
                "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
            },
            "add_bias_linear": False,
            "add_qkv_bias": True,
            "apply_query_key_layer_scaling": True,
            "apply_residual_connection_post_layernorm": False,
            "attention_dropout": 0.0,
            "attention_softmax_in_fp32": True,
            "bias_dropout_fusion": True,
            "ffn_hidden_size": 56,
            "fp32_residual_connection": False,
            "hidden_dropout": 0.0,
            "hidden_size": 48,
            "kv_channels": 16,
            "layernorm_epsilon": 1e-05,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "num_attention_heads": 4,
            "num_layers": 3,
            "original_rope": True,
            "padded_vocab_size": 448,
            "post_layer_norm": True,
            "rmsnorm": True,
            "seq_length": 512,
            "use_cache": True,
            "torch_dtype": str(kind).removeprefix("torch."),
            "transformers_version": "4.27.1",
            "tie_word_embeddings": False,
            "eos_token_id": 2,
            **changes,
        }
        about = {
            "name_or_path": owner,
            "remove_space": False,
            "do_lower_case": False,
            "tokenizer_class": "ChatGLMTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
        }
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
        shutil.copy(sentencepiece_model, folder / "tokenizer.model")
        for code in ("configuration", "modeling", "tokenization"):
            trap = 'raise SystemExit("the code beside the weights was run")'
            (folder / f"{code}_chatglm.py").write_text(
                trap + ("  # <|user|>" if generation == 3 else ""), encoding="utf-8"
            )
        _write_shards(folder, form, _chatglm_weights(config, kind))
        return folder

    return write


def _chatglm_weights(config: dict[str, Any], kind: torch.dtype) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    hidden, wide = config["hidden_size"], config["ffn_hidden_size"]
    queries = config["num_attention_heads"] * config["kv_channels"]
    shared = config["multi_query_group_num"] * config["kv_channels"]
    fused = queries + 2 * (shared if config["multi_query_attention"] else queries)

    def normal(*shape: int, mean: float = 0.0) -> Tensor:
        return (mean + 0.2 * torch.randn(*shape, generator=drawn)).to(kind)

    weights = {
        "transformer.embedding.word_embeddings.weight": normal(config["padded_vocab_size"], hidden),
        "transformer.rotary_pos_emb.inv_freq": torch.ones(config["kv_channels"] // 4).to(kind),
    }
    for layer in range(config["num_layers"]):
        at = f"transformer.encoder.layers.{layer}"
        weights |= {
            f"{at}.input_layernorm.weight": normal(hidden, mean=1.0),
            f"{at}.self_attention.query_key_value.weight": normal(fused, hidden),
            f"{at}.self_attention.dense.weight": normal(hidden, queries),
            f"{at}.post_attention_layernorm.weight": normal(hidden, mean=1.0),
            f"{at}.mlp.dense_h_to_4h.weight": normal(2 * wide, hidden),
            f"{at}.mlp.dense_4h_to_h.weight": normal(hidden, wide),
        }
        if config["add_qkv_bias"]:
            weights[f"{at}.self_attention.query_key_value.bias"] = normal(fused)
    weights["transformer.encoder.final_layernorm.weight"] = normal(hidden, mean=1.0)
    weights["transformer.output_layer.weight"] = normal(config["padded_vocab_size"], hidden)
    return weights


def _write_shards(folder: Path, form: str, weights: dict[str, Tensor]) -> None:
    """Three shards and their index."""
    stem = "model" if form == "safetensors" else "pytorch_model"
    names = list(weights)
    table = {}
    for shard in range(3):
        file = f"{stem}-{shard + 1:05}-of-00003.{form}"
        held = {name: weights[name] for name in names[shard * len(names) // 3 :]}
        held = {name: held[name] for name in names[: (shard + 1) * len(names) // 3] if name in held}
        if form == "safetensors":
            save_file(held, folder / file, metadata={"format": "pt"})
        else:
            torch.save(held, folder / file)
        table |= dict.fromkeys(held, file)
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": table}
    suffix = "safetensors" if form == "safetensors" else "bin"
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")
