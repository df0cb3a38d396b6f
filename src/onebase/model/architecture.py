"""The architectures that can be a base: causal language models with attention, by their config."""

import json
from pathlib import Path
from typing import Any

from onebase.errors import UsageError
from onebase.language import say
from onebase.model.chatglm_config import is_chatglm

_KINDS = "Llama, Qwen, Mistral, Gemma, GLM, Phi-3"


def check_architecture(folder: Path) -> None:
    """Raise UsageError if the model in `folder` can't be a base.

    Raises one of `weights.READ_ERRORS` if its config.json is damaged.
    """
    if is_chatglm(folder):
        return
    # Late, as in read_model.
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, __version__

    settings, _ = PreTrainedConfig.get_config_dict(folder)
    kind = settings.get("model_type")
    if kind is None:
        raise ValueError(say("config.json has no model_type", "config.json 中没有 model_type"))
    if kind not in CONFIG_MAPPING:
        has_own_code = "auto_map" in settings
        raise _refused(
            folder,
            kind,
            say(
                f"transformers {__version__} does not support this type"
                + (", and code in the model's folder is not run" if has_own_code else ""),
                f"transformers {__version__} 不支持该类型"
                + ("，且不会运行模型目录中附带的代码" if has_own_code else ""),
            ),
        )
    require_base(AutoConfig.from_pretrained(folder), folder)


def require_base(config: Any, place: Path) -> None:
    """Raise UsageError if the model with this configuration, at `place`, can't be a base."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    reason = _reason(config, type(config) in MODEL_FOR_CAUSAL_LM_MAPPING)
    if reason:
        raise _refused(place, config.model_type, reason)


def _reason(config: Any, causal: bool) -> str:
    """Why a model with this configuration can't be a base; empty if it can."""
    if config.is_encoder_decoder:
        return say(
            "it is an encoder-decoder model, and a base must be decoder-only",
            "它是编码器-解码器模型，而基座必须是仅解码器模型",
        )
    if not causal:
        media = [
            name
            for part, name in (("vision", "images"), ("audio", "sound"))
            if hasattr(config, f"{part}_config")
        ]
        if media:
            return say(
                f"it also reads {' and '.join(media)}, and only Gemma 3's text part can be used by "
                "itself",
                "它除文本外还读取图像或声音，目前只有 Gemma 3 的文本部分可以单独使用",
            )
        return say("it is not a causal language model", "它不是因果语言模型")
    text = config.get_text_config()
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    missing = [name for name in sizes if not isinstance(getattr(text, name, None), int)]
    if missing:
        return say(
            f"it has no {missing[0]}, but adapters need layers with attention",
            f"它没有 {missing[0]}，而适配器需要带注意力的层",
        )
    keys, values = head_sizes(text)
    if keys != values:
        return say(
            f"its keys have head size {keys} and its values {values}, but both must be the same",
            f"其注意力头的键维度为 {keys}，值维度为 {values}，而这里要求二者相同",
        )
    return ""


def head_sizes(config: Any) -> tuple[int, int]:
    """The head sizes of keys and of values."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if getattr(config, "kv_lora_rank", None):
        # DeepSeek's latent attention: `head_dim` is the rotated part.
        return config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    return size, size


def text_part(model: Any) -> Any:
    """The causal language model inside a vision-language model; `model` itself if it already is one.

    Raises ValueError if the text part is not a model of its own.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    config = model.config.get_text_config()
    if config is model.config:
        return model
    inner = getattr(model.model, "language_model", None)
    if inner is None or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            say(
                f"{type(model).__name__} has no text part that can be used by itself",
                f"{type(model).__name__} 中没有可单独使用的文本部分",
            )
        )
    import torch

    head = model.get_output_embeddings()
    config.tie_word_embeddings = head.weight is model.get_input_embeddings().weight
    config.dtype = head.weight.dtype
    with torch.device("meta"):
        text = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    text.model, text.lm_head = inner, head
    text.generation_config = model.generation_config
    return text


def has_text_part(folder: Path) -> bool:
    """Whether `folder` holds a model with a text part, such as a vision-language model."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and isinstance(config.get("text_config"), dict)


def _refused(place: Path, kind: str, reason: str) -> UsageError:
    return UsageError(
        say(
            f"The model in {place} is of type {kind} and can't be a base: {reason}.",
            f"{place} 中的模型类型为 {kind}，不能用作基座：{reason}。",
        ),
        say(
            f"Give a causal language model with attention, such as {_KINDS}.",
            f"请给出带注意力的因果语言模型，例如 {_KINDS}。",
        ),
    )
