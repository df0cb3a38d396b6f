"""The options of a training and their defaults."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainOptions(BaseModel):
    """How a job is trained. A checkpoint is saved at every evaluation too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(
        3,
        ge=1,
        le=1000,
        description="Passes over the training rows.",
        json_schema_extra={"zh": "训练数据的遍数。"},
    )
    batch_size: int = Field(
        8,
        ge=1,
        description="Rows of one forward pass; an optimizer step takes batch_size * accumulation rows.",
        json_schema_extra={"zh": "每次前向的行数；每个优化器步使用 batch_size * accumulation 行。"},
    )
    accumulation: int = Field(
        1,
        ge=1,
        description="Forward passes whose gradients are accumulated for one optimizer step.",
        json_schema_extra={"zh": "每个优化器步累积梯度的前向次数。"},
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate; by default the method's own.",
        json_schema_extra={"zh": "学习率峰值；默认为方法自身的学习率。"},
    )
    beta2: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Second decay rate of AdamW; by default the method's own.",
        json_schema_extra={"zh": "AdamW 的第二衰减率；默认为方法自身的值。"},
    )
    warmup: int = Field(
        5,
        ge=0,
        description="Optimizer steps in which the learning rate rises from 0.",
        json_schema_extra={"zh": "学习率从 0 上升所用的步数。"},
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear",
        description="How the learning rate changes after the warmup: falls to 0 linearly or as a cosine, or stays.",
        json_schema_extra={"zh": "预热后学习率的变化：线性或余弦下降到 0，或保持不变。"},
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Weight decay of AdamW.",
        json_schema_extra={"zh": "AdamW 的权重衰减。"},
    )
    clip: float = Field(
        1.0,
        gt=0,
        description="Largest gradient norm; larger gradients are scaled down.",
        json_schema_extra={"zh": "梯度范数上限，超过则按比例缩小。"},
    )
    patience: int = Field(
        0,
        ge=0,
        description="Evaluations (one an epoch) without a better held-out loss before the job stops; 0 never stops early.",
        json_schema_extra={
            "zh": "留出损失连续多少次评估（每轮一次）未改善即提前停止；0 表示不提前停止。"
        },
    )
    held_out: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the inputs held out for evaluation, where no held-out file is given.",
        json_schema_extra={"zh": "未指定留出文件时，留出用于评估的输入所占比例。"},
    )
    max_tokens: int = Field(
        512,
        ge=8,
        description="Tokens of the longest example; longer examples are cut.",
        json_schema_extra={"zh": "每个样例的最大词元数，超出部分被截断。"},
    )
    save_limit: int = Field(
        2,
        ge=1,
        description="Checkpoints that are kept; of several jobs the largest number counts.",
        json_schema_extra={"zh": "保留的检查点数量；多个任务时取最大值。"},
    )
    save_seconds: float = Field(
        60.0,
        ge=0,
        description="Seconds between two checkpoints, besides those at evaluations; of several jobs the shortest time counts.",
        json_schema_extra={"zh": "除评估时外，两个检查点之间的秒数；多个任务时取最小值。"},
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Save memory by computing every layer twice, with the same numbers; shared by all jobs of a pass.",
        json_schema_extra={"zh": "每层计算两次以节省内存，数值不变；同一次前向的所有任务共用。"},
    )
    trunk: Literal["fp32", "fp16", "none"] = Field(
        "fp32",
        description="Compute the layers below the adapter once per text and keep their output in fp32, in fp16 (half the space, rounded), or not at all.",
        json_schema_extra={
            "zh": "适配器以下各层的输出每段文本只计算一次，以 fp32 或 fp16（空间减半，有舍入）保存，或不保存。"
        },
    )
