"""Full fine-tuning: trains every weight of a copy of the base. The result is a base itself."""

from pathlib import Path

import torch

from onebase.adapters.option import StrictOptions, option
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.precision import of_type

FULL = "full"


class FullOptions(StrictOptions):
    """The options of `full`."""

    mixed_precision: bool = option(
        True,
        "On a GPU, compute products in bfloat16 while the weights stay in float32.",
        "在 GPU 上用 bfloat16 计算矩阵乘法，权重保持 float32。",
    )


def require_whole_weights(base: Base) -> None:
    """Raise UsageError for a quantized base, whose weights are already rounded."""
    if base.precision.quantized:
        raise UsageError(
            say(
                f"full trains every weight, but {base.name} is quantized to {base.precision}.",
                f"full 训练全部权重，但 {base.name} 已量化为 {base.precision}。",
            ),
            say(
                "Load the base in floating point, or use qlora.",
                "请以浮点精度加载基座，或使用 qlora。",
            ),
        )


def trainable_copy(base: Base) -> Base:
    """A copy of `base` in float32 with gradients for every weight.

    Raises UsageError for a quantized base, whose weights are already rounded.
    """
    require_whole_weights(base)
    model = type(base.model)(base.model.config)
    model.generation_config = base.model.generation_config
    model.load_state_dict(base.model.state_dict())
    model.tie_weights()
    copy = Base(model.to(base.device, torch.float32), base.tokenizer, name=base.name)
    copy.precision = of_type(torch.float32)
    copy.model.requires_grad_(True)
    return copy


def save_full(base: Base, folder: Path) -> None:
    """Write a trained copy into the existing `folder` as a base with one safetensors file."""
    base.model.save_pretrained(folder, max_shard_size="1000GB")
    base.tokenizer.save_pretrained(folder)
