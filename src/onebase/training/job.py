"""A job: one task, its data, method and settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onebase.adapters.methods import METHODS, parse_options, parts_of, settings_by_method
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.training.yaml_file import read_yaml


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


def check_seed(seed: int) -> None:
    """Raise UsageError unless every generator takes `seed`."""
    if not 0 <= seed < 1 << 63:
        raise UsageError(
            say(f"seed={seed} is not valid.", f"seed={seed} 无效。"),
            say("Give a whole number from 0 to 2**63 - 1.", "请给出 0 到 2**63 - 1 的整数。"),
        )


@dataclass(frozen=True)
class Job:
    """One task to train.

    `data` and `held_out` are files (or Hub data sets) in any of the known formats; `template` is auto,
    chat, plain or a text with {input}; `encoding` is that of files that are not UTF-8; `set` holds the
    options of the method and of the training.
    """

    task: str
    data: str | Path
    method: str = "lora"
    instruction: str | None = None
    held_out: str | Path | None = None
    template: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    skip_bad: bool = False
    seed: int = 0
    set: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> tuple[TrainOptions, dict[str, Any]]:
        """The training options, and the settings of the methods. Raises UsageError."""
        by_method, rest = settings_by_method(self.method, self.set)
        for key in rest:
            if key not in TrainOptions.model_fields:
                fields_of = [METHODS[name].options.model_fields for name in by_method]
                valid = [*(field for fields in fields_of for field in fields)]
                valid = [*dict.fromkeys(valid), *TrainOptions.model_fields]
                raise unknown(f"setting of {self.method}", f"{self.method} 设置项", key, valid)
        for name, settings in by_method.items():
            parse_options(METHODS[name].options, settings)
        return parse_options(TrainOptions, rest), {
            key: value for key, value in self.set.items() if key not in rest
        }

    def rates(self) -> dict[str, float]:
        """The peak learning rate of each method: the job's own, or else the method's."""
        chosen = self.options()[0].learning_rate
        return {name: chosen or METHODS[name].learning_rate for name in parts_of(self.method)}

    def beta2s(self) -> dict[str, float]:
        """AdamW's second decay rate for each method: the job's own, or else the method's."""
        chosen = self.options()[0].beta2
        return {
            name: METHODS[name].beta2 if chosen is None else chosen
            for name in parts_of(self.method)
        }

    def init_text(self, labels: Sequence[str] = ()) -> str:
        """The text that virtual tokens start from, unless the settings name one: the instruction, and the
        `labels` of a classification task.
        """
        text = self.instruction or "Answer in the form that the examples show."
        return f"{text} {', '.join(labels)}" if labels else text


# The type of each key of a job in a tasks.yaml.
_KINDS: dict[str, type] = {
    "task": str,
    "data": str,
    "method": str,
    "instruction": str,
    "held_out": str,
    "template": str,
    "columns": dict,
    "encoding": str,
    "skip_bad": bool,
    "seed": int,
    "set": dict,
}
_KIND_NAMES = {str: "text", dict: "mapping", bool: "true/false", int: "whole number"}


@dataclass(frozen=True)
class TaskFile:
    """A tasks.yaml: the `base` and its `precision`, where it names them, and the jobs."""

    base: str | None
    precision: str | None
    jobs: list[Job]


def read_jobs(file: str | Path) -> TaskFile:
    """What a tasks.yaml says; data files are relative to it.

    Raises UsageError naming the job and the key.
    """
    path = Path(file)
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("jobs"), list):
        raise UsageError(
            say(f"{path} has no list called jobs.", f"{path} 中没有名为 jobs 的列表。"),
            say(
                "Write: jobs: [{task: …, data: …, method: …}].",
                "请写成：jobs: [{task: …, data: …, method: …}]。",
            ),
        )
    known = [item.name for item in fields(TaskFile)]
    for key, value in content.items():
        if key not in known:
            raise unknown("key", "键", key, known)
        if key != "jobs" and not isinstance(value, str | None):
            raise UsageError(
                say(f"{path} has {key}: {value!r}.", f"{path} 中写有 {key}：{value!r}。"),
                say(f"Give a text for {key}.", f"{key} 应为文本。"),
            )
    jobs = [_job(path, item) for item in content["jobs"]]
    return TaskFile(content.get("base"), content.get("precision"), jobs)


def _job(path: Path, item: Any) -> Job:
    known = list(Job.__dataclass_fields__)
    if not isinstance(item, dict):
        raise UsageError(
            say(
                f"A job in {path} is {item!r}, not a mapping.",
                f"{path} 中的任务 {item!r} 不是映射。",
            ),
            say(f"Give it keys: {', '.join(known)}.", f"请给出键：{'、'.join(known)}。"),
        )
    for key in item:
        if key not in known:
            raise unknown("key of a job", "任务键", key, known)
    for key in ("task", "data"):
        if not item.get(key):
            raise UsageError(
                say(
                    f"A job in {path} has no {key}: {item!r}.",
                    f"{path} 中的任务缺少 {key}：{item!r}。",
                ),
                say(f"Add {key}: ….", f"请补上 {key}: …。"),
            )
    for key, kind in _KINDS.items():
        value = item.get(key)
        if value is not None and type(value) is not kind:
            raise UsageError(
                say(
                    f"A job in {path} has {key}: {value!r}.",
                    f"{path} 中的任务写有 {key}：{value!r}。",
                ),
                say(
                    f"Give a {_KIND_NAMES[kind]} for {key} (quote a text that looks like a number).",
                    f"{key} 应为 {_KIND_NAMES[kind]}（像数字的文本请加引号）。",
                ),
            )
    item = {key: value for key, value in item.items() if value is not None}
    for key in ("data", "held_out"):
        beside = path.parent / str(item.get(key) or "")
        if item.get(key) and beside.exists():
            item = {**item, key: str(beside)}
    return Job(**item)
