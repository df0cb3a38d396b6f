"""The config.json of ChatGLM2 and ChatGLM3, and its translation to transformers' Glm.

The architecture is the same: grouped-query attention with a bias on queries, keys and values, rotary
embedding of adjacent pairs in the first half of each head, SwiGLU. Settings that Glm does not support
are refused by name.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onebase.language import say

if TYPE_CHECKING:
    import torch
    from transformers import GlmConfig

Generation = Literal[2, 3]


class Settings(BaseModel):
    """The fields of ChatGLM's config.json, with the defaults of its code.

    Fields without effect on a trained model's answers (dropout, initialization, the order of arithmetic
    in the original) are not read.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    num_layers: int = Field(28, ge=1)
    padded_vocab_size: int = Field(65024, ge=1)
    hidden_size: int = Field(4096, ge=1)
    ffn_hidden_size: int = Field(13696, ge=1)
    kv_channels: int = Field(128, ge=4, multiple_of=4)  # half of each head rotates, in pairs
    num_attention_heads: int = Field(32, ge=1)
    multi_query_attention: bool = False
    multi_query_group_num: int = Field(1, ge=1)
    add_qkv_bias: bool = False
    layernorm_epsilon: float = Field(1e-5, gt=0, allow_inf_nan=False)
    seq_length: int = Field(2048, ge=1)
    rope_ratio: float = Field(1.0, gt=0, allow_inf_nan=False)
    torch_dtype: Literal["float16", "bfloat16", "float32"] | None = None

    # Settings for which Glm supports only one value.
    rmsnorm: Literal[True] = True
    post_layer_norm: Literal[True] = True
    original_rope: Literal[True] = True
    add_bias_linear: Literal[False] = False
    apply_residual_connection_post_layernorm: Literal[False] = False
    fp32_residual_connection: Literal[False] = False
    tie_word_embeddings: Literal[False] = False
    quantization_bit: Literal[0] | None = 0
    pre_seq_len: None = None
    position_encoding_2d: Literal[False] = False  # the first ChatGLM-6B
    vision_config: None = None

    @property
    def groups(self) -> int:
        """The number of key-value heads."""
        return (
            self.multi_query_group_num if self.multi_query_attention else self.num_attention_heads
        )

    @property
    def qkv(self) -> tuple[int, int, int]:
        """The numbers of rows of queries, keys and values."""
        shared = self.groups * self.kv_channels
        return self.num_attention_heads * self.kv_channels, shared, shared

    @property
    def dtype(self) -> "torch.dtype | None":
        """The dtype of the weights in the config; None if it has none."""
        import torch  # late, as GlmConfig: recognizing a folder needs neither

        kind: torch.dtype | None = self.torch_dtype and getattr(torch, self.torch_dtype)
        return kind

    def glm(self, which: Generation | None, *, pad: int, ends: list[int]) -> "GlmConfig":
        """The config of this model as Glm, with its padding token and its end tokens.

        Raises ValueError if `rope_ratio` depends on the ChatGLM version and `which` is None.
        """
        from transformers import GlmConfig

        return GlmConfig(
            vocab_size=self.padded_vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.ffn_hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.groups,
            head_dim=self.kv_channels,
            attention_bias=self.add_qkv_bias,
            rms_norm_eps=self.layernorm_epsilon,
            max_position_embeddings=self.seq_length,
            rope_parameters=_rope(self.rope_ratio, which),
            pad_token_id=pad,
            eos_token_id=ends,
        )


def is_chatglm(folder: Path) -> bool:
    """Whether `folder` holds a model in ChatGLM's own format."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # the next reader reports it
    return isinstance(config, dict) and config.get("model_type") == "chatglm"


def generation(folder: Path) -> Generation | None:
    """The ChatGLM version in `folder`, by the names in its files and its role tokens; None if unknown.

    The code file is only searched, never run.
    """
    code = _text(folder / "tokenization_chatglm.py")
    marks = _text(folder / "config.json") + _text(folder / "tokenizer_config.json")
    if "<|user|>" in marks + code or "chatglm3" in marks.lower():
        return 3
    return 2 if code or "chatglm2" in marks.lower() else None


def read_settings(folder: Path) -> Settings:
    """The settings in `folder`'s config.json. Raises ValueError for one that Glm does not support."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "dtype" in content:  # the name of `torch_dtype` since transformers 5
        content.setdefault("torch_dtype", content["dtype"])
    try:
        settings = Settings.model_validate(content)
    except ValidationError as error:
        details = error.errors()[0]
        field = str(details["loc"][0])
        raise ValueError(
            say(
                f"{field}={content[field]!r} in config.json is not supported ({details['msg']})",
                f"不支持 config.json 中的 {field}={content[field]!r}（{details['msg']}）",
            )
        ) from error
    if settings.num_attention_heads % settings.groups:
        raise ValueError(
            say(
                f"num_attention_heads={settings.num_attention_heads} in config.json is not a "
                f"multiple of multi_query_group_num={settings.groups}",
                f"config.json 中的 num_attention_heads={settings.num_attention_heads} 不是 "
                f"multi_query_group_num={settings.groups} 的倍数",
            )
        )
    return settings


def _rope(ratio: float, which: Generation | None) -> dict[str, Any]:
    """Glm's rotary parameters; `ratio` is the `rope_ratio` in the configs of the 32K models.

    ChatGLM2-6B-32K divides positions by it, ChatGLM3-6B-32K multiplies the base by it.
    """
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    if ratio == 1:
        return rope
    if which is None:
        raise ValueError(
            say(
                f"rope_ratio={ratio:g} in config.json has different meanings for ChatGLM2 and ChatGLM3, "
                "and _name_or_path does not say which model this is",
                f"config.json 中的 rope_ratio={ratio:g} 在 ChatGLM2 与 ChatGLM3 中含义不同，"
                "而 _name_or_path 未说明是哪一个",
            )
        )
    if which == 2:
        return {**rope, "rope_type": "linear", "factor": ratio}
    return {**rope, "rope_theta": 10000.0 * ratio}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
