"""Reading ChatGLM2-6B and ChatGLM3-6B from their original files, without running their code.

transformers' Glm is the same architecture with other names and with separate weights for queries, keys
and values. The weights are renamed and split here, one at a time; a missing weight is an error.
"""

import json
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GlmForCausalLM

from onebase.language import say
from onebase.model.chatglm_config import Settings, generation, read_settings
from onebase.model.chatglm_tokenizer import ChatGLMTokenizer

_LAYER = "transformer.encoder.layers."
_ROTARY = "transformer.rotary_pos_emb.inv_freq"  # a buffer; it follows from the config
_OUTSIDE = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
_INSIDE = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
# The first bytes of torch.save's old format.
_OLD_FORMAT = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
_QKV = "self_attention.query_key_value"


def read_chatglm(folder: Path, *, dtype: torch.dtype | str) -> GlmForCausalLM:
    """The model in `folder` as transformers' Glm.

    `dtype` is a dtype or `auto`: the one in config.json, by default that of the files. Weights that
    keep their dtype stay mapped from the files. Raises ValueError for an unsupported setting or a
    wrong weight, or another of `weights.READ_ERRORS`.
    """
    settings, which = read_settings(folder), generation(folder)
    tokenizer = ChatGLMTokenizer(folder / "tokenizer.model", generation=which or 2)
    if len(tokenizer) > settings.padded_vocab_size:
        raise ValueError(
            say(
                f"tokenizer.model has {len(tokenizer)} tokens, but the model only "
                f"{settings.padded_vocab_size} (padded_vocab_size)",
                f"tokenizer.model 有 {len(tokenizer)} 个词元，而模型只有 "
                f"{settings.padded_vocab_size} 个（padded_vocab_size）",
            )
        )
    config = settings.glm(which, pad=tokenizer.pad_token_id, ends=tokenizer.ends)
    kind = settings.dtype if isinstance(dtype, str) else dtype
    config.dtype = kind
    with torch.device("meta"):
        model = GlmForCausalLM(config)
    # Computed, not read from the files.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    for name, weight in _weights(folder, settings):
        for its_name, part in _renamed(name, weight, settings):
            module, _, attribute = its_name.rpartition(".")
            value = part if kind is None else part.to(kind)
            parameter = nn.Parameter(value.contiguous(), requires_grad=False)
            setattr(model.get_submodule(module), attribute, parameter)
    return model


def _shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights by their original names."""
    hidden, wide = settings.hidden_size, settings.ffn_hidden_size
    vocabulary = (settings.padded_vocab_size, hidden)
    inside: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        f"{_QKV}.weight": (sum(settings.qkv), hidden),
        "self_attention.dense.weight": (hidden, settings.qkv[0]),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.dense_h_to_4h.weight": (2 * wide, hidden),
        "mlp.dense_4h_to_h.weight": (hidden, wide),
    }
    if settings.add_qkv_bias:
        inside[f"{_QKV}.bias"] = (sum(settings.qkv),)
    shapes = {
        f"{_LAYER}{layer}.{name}": shape
        for layer in range(settings.num_layers)
        for name, shape in inside.items()
    }
    return shapes | dict(zip(_OUTSIDE, (vocabulary, (hidden,), vocabulary), strict=True))


def _renamed(name: str, weight: Tensor, settings: Settings) -> Iterator[tuple[str, Tensor]]:
    """The parts of a weight by their names in Glm."""
    if name in _OUTSIDE:
        yield _OUTSIDE[name], weight
        return
    layer, _, inside = name.removeprefix(_LAYER).partition(".")
    if inside in _INSIDE:
        yield f"model.layers.{layer}.{_INSIDE[inside]}", weight
        return
    kind = inside.rpartition(".")[2]
    parts: Sequence[Tensor] = torch.split(weight, list(settings.qkv))
    if not settings.multi_query_attention:
        # Without shared keys the original stores query, key and value of each head together.
        heads = weight.view(settings.num_attention_heads, 3, settings.kv_channels, -1)
        parts = [part.reshape(-1, *weight.shape[1:]) for part in heads.unbind(1)]
    for letter, part in zip("qkv", parts, strict=True):
        yield f"model.layers.{layer}.self_attn.{letter}_proj.{kind}", part


def _weights(folder: Path, settings: Settings) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its original name, file by file. Raises ValueError for a missing, unknown or
    repeated weight, and for one of another shape or dtype.
    """
    shapes = _shapes(settings)
    missing = set(shapes)
    for file in _files(folder):
        for name, weight in _content(file):
            if name == _ROTARY:
                continue
            if name not in missing:
                raise ValueError(
                    say(
                        f"{file.name} has a second weight {name}"
                        if name in shapes
                        else f"{file.name} has a weight {name}, which this model does not have",
                        f"{file.name} 中的权重 {name} 重复"
                        if name in shapes
                        else f"{file.name} 中的权重 {name} 在该模型中没有位置",
                    )
                )
            if weight.shape != shapes[name] or not weight.is_floating_point():
                actual = f"{list(weight.shape)} {str(weight.dtype).removeprefix('torch.')}"
                raise ValueError(
                    say(
                        f"the weight {name} in {file.name} is {actual}, "
                        f"not {list(shapes[name])} in floating point",
                        f"{file.name} 中的权重 {name} 为 {actual}，而应为浮点 {list(shapes[name])}",
                    )
                )
            missing.remove(name)
            yield name, weight
    if missing:
        raise ValueError(
            say(
                f"{len(missing)} weights are missing, such as {min(missing)}",
                f"缺少 {len(missing)} 个权重，例如 {min(missing)}",
            )
        )


def _files(folder: Path) -> list[Path]:
    """The weight files, safetensors rather than pickles."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if index.is_file():
            files = [folder / name for name in _shards(index)]
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise FileNotFoundError(
                    say(
                        f"{index.name} names {absent[0]}, which does not exist",
                        f"{index.name} 提到的 {absent[0]} 不存在",
                    )
                )
            return files
        if (folder / single).is_file():
            return [folder / single]
    raise FileNotFoundError(
        say(
            "it has neither model.safetensors nor pytorch_model.bin nor an index of either",
            "其中既没有 model.safetensors 或 pytorch_model.bin，也没有它们的索引",
        )
    )


def _shards(index: Path) -> list[str]:
    content = json.loads(index.read_text(encoding="utf-8"))
    table = content.get("weight_map") if isinstance(content, dict) else None
    names = list(table.values()) if isinstance(table, dict) else []
    # A shard is in the folder of its index; a name with a path is refused.
    if not names or not all(
        isinstance(name, str) and name and Path(name).name == name for name in names
    ):
        raise ValueError(
            say(
                f"{index.name} has no weight_map from weights to files in the same folder",
                f"{index.name} 中没有从权重到同目录文件的 weight_map",
            )
        )
    return sorted(set(names))


def _content(file: Path) -> Iterator[tuple[str, Tensor]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                yield name, tensors.get_tensor(name)
        return
    zipped = zipfile.is_zipfile(file)
    try:
        with file.open("rb") as opened:
            if not zipped and opened.read(len(_OLD_FORMAT)) != _OLD_FORMAT:
                raise pickle.UnpicklingError("not a file of torch.save")
        # Tensors only: a pickle that asks for anything else is refused before it gets it.
        content = torch.load(file, weights_only=True, map_location="cpu", mmap=zipped)
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            say(
                f"{file.name} holds something other than weights, or is damaged",
                f"{file.name} 含有权重以外的内容，或已损坏",
            )
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise ValueError(
            say(
                f"{file.name} is not a dictionary of weights by name",
                f"{file.name} 不是以名称为键的权重表",
            )
        )
    yield from content.items()
