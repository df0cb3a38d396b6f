"""The options of a training and their defaults."""

from typing import Literal

from onebase.adapters.option import StrictOptions, option
from onebase.runs.checkpointer import SAVE_LIMIT, SAVE_SECONDS

# Options that alignment has too.
WARMUP = option(
    5,
    "Optimizer steps in which the learning rate rises from 0.",
    "学习率从 0 上升所用的步数。",
    ge=0,
)
WEIGHT_DECAY = option(0.0, "Weight decay of AdamW.", "AdamW 的权重衰减。", ge=0)
CLIP = option(
    1.0,
    "Largest gradient norm; larger gradients are scaled down.",
    "梯度范数上限，超过则按比例缩小。",
    gt=0,
)


class TrainOptions(StrictOptions):
    """How a job is trained. A checkpoint is saved at every evaluation too."""

    epochs: int = option(3, "Passes over the training rows.", "训练数据的遍数。", ge=1, le=1000)
    batch_size: int = option(
        8,
        "Rows of one forward pass; an optimizer step takes batch_size * accumulation rows.",
        "每次前向的行数；每个优化器步使用 batch_size * accumulation 行。",
        ge=1,
    )
    accumulation: int = option(
        1,
        "Forward passes whose gradients are accumulated for one optimizer step.",
        "每个优化器步累积梯度的前向次数。",
        ge=1,
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate; by default the method's own.",
        "学习率峰值；默认为方法自身的学习率。",
        gt=0,
    )
    beta2: float | None = option(
        None,
        "Second decay rate of AdamW; by default the method's own.",
        "AdamW 的第二衰减率；默认为方法自身的值。",
        ge=0,
        lt=1,
    )
    warmup: int = WARMUP
    schedule: Literal["linear", "cosine", "constant"] = option(
        "linear",
        "How the learning rate changes after the warmup: falls to 0 linearly or as a cosine, or stays.",
        "预热后学习率的变化：线性或余弦下降到 0，或保持不变。",
    )
    weight_decay: float = WEIGHT_DECAY
    clip: float = CLIP
    patience: int = option(
        0,
        "Evaluations (one an epoch) without a better held-out loss before the job stops; 0 never stops early.",
        "留出损失连续多少次评估（每轮一次）未改善即提前停止；0 表示不提前停止。",
        ge=0,
    )
    held_out: float = option(
        0.1,
        "Share of the inputs held out for evaluation, where no held-out file is given.",
        "未指定留出文件时，留出用于评估的输入所占比例。",
        ge=0,
        lt=1,
    )
    max_tokens: int = option(
        512,
        "Tokens of the longest example; longer examples are cut.",
        "每个样例的最大词元数，超出部分被截断。",
        ge=8,
    )
    save_limit: int = option(
        SAVE_LIMIT,
        "Checkpoints that are kept; of several jobs the largest number counts.",
        "保留的检查点数量；多个任务时取最大值。",
        ge=1,
    )
    save_seconds: float = option(
        SAVE_SECONDS,
        "Seconds between two checkpoints, besides those at evaluations; of several jobs the shortest time counts.",
        "除评估时外，两个检查点之间的秒数；多个任务时取最小值。",
        ge=0,
    )
    gradient_checkpointing: bool = option(
        False,
        "Save memory by computing every layer twice, with the same numbers; shared by all jobs of a pass.",
        "每层计算两次以节省内存，数值不变；同一次前向的所有任务共用。",
    )
    trunk: Literal["fp32", "fp16", "none"] = option(
        "fp32",
        "Compute the layers below the adapter once per text and keep their output in fp32, in fp16 (half the space, rounded), or not at all.",
        "适配器以下各层的输出每段文本只计算一次，以 fp32 或 fp16（空间减半，有舍入）保存，或不保存。",
    )
