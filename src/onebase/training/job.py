"""A job: one task to learn, from which data, by which method, with which settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from onebase.adapters.methods import METHODS, canonical_method, parse_options
from onebase.errors import UsageError, unknown
from onebase.language import say


class TrainOptions(BaseModel):
    """How a job learns. `learning_rate` None takes the method's own default.

    `warmup` is in optimizer steps; `schedule` what the learning rate does after it; `clip` the
    largest gradient norm; an optimizer step takes `batch_size` * `accumulation` rows, its loss
    the mean over their labels. `patience` is how many evaluations (one an epoch) may pass
    without a better held-out loss; 0 never stops early. `held_out` is the share of inputs kept
    for evaluation where no held-out file is given. `max_tokens` cuts longer examples;
    `save_limit` is how many checkpoints are kept beside the best.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(3, ge=1, le=1000)
    batch_size: int = Field(8, ge=1)
    accumulation: int = Field(1, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    warmup: int = Field(5, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    patience: int = Field(0, ge=0)
    held_out: float = Field(0.1, ge=0, lt=1)
    max_tokens: int = Field(512, ge=8)
    save_limit: int = Field(1, ge=0)


@dataclass(frozen=True)
class Job:
    """One task to learn.

    `data` and `held_out` are files (or Hub data sets) in any of the known formats; `template` is
    auto, chat, plain or a text with {input}; `set` holds the method's options and TrainOptions.
    """

    task: str
    data: str | Path
    method: str = "lora"
    instruction: str | None = None
    held_out: str | Path | None = None
    template: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    skip_bad: bool = False
    seed: int = 0
    set: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> tuple[TrainOptions, dict[str, Any]]:
        """The training options, and the method's own settings. Raises UsageError."""
        method = METHODS[canonical_method(self.method)]
        own = {key: value for key, value in self.set.items() if key in method.options.model_fields}
        rest = {key: value for key, value in self.set.items() if key not in own}
        for key in rest:
            if key not in TrainOptions.model_fields:
                valid = [*method.options.model_fields, *TrainOptions.model_fields]
                raise unknown(f"setting of {self.method}", f"{self.method} 设置项", key, valid)
        parse_options(method.options, own)
        return parse_options(TrainOptions, rest), own

    def learning_rate(self) -> float:
        """The peak learning rate."""
        chosen = self.options()[0].learning_rate
        return chosen or METHODS[canonical_method(self.method)].learning_rate

    def init_text(self) -> str:
        """What virtual tokens start from when the settings name no text of their own."""
        return self.instruction or "Answer in the form that the examples show."


# What a tasks.yaml may hold under each key of a job.
_KINDS: dict[str, type] = {
    "task": str,
    "data": str,
    "method": str,
    "instruction": str,
    "held_out": str,
    "template": str,
    "columns": dict,
    "skip_bad": bool,
    "seed": int,
    "set": dict,
}
_KIND_NAMES = {str: "text", dict: "mapping", bool: "true/false", int: "whole number"}


def read_jobs(file: str | Path) -> tuple[str | None, list[Job]]:
    """The base and the jobs of a tasks.yaml; data files are relative to it.

    Raises UsageError naming the job and the key.
    """
    path = Path(file)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            say(f"{path} can't be read: {error.strerror}.", f"无法读取 {path}：{error.strerror}。"),
            say("Check the path of the tasks file.", "请检查任务文件的路径。"),
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            say(f"{path} is not YAML: {error}", f"{path} 不是有效的 YAML：{error}"),
            say("Correct the line it names.", "请修正所指的行。"),
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("jobs"), list):
        raise UsageError(
            say(f"{path} has no list called jobs.", f"{path} 中没有名为 jobs 的列表。"),
            say(
                "Write: jobs: [{task: …, data: …, method: …}].",
                "请写成：jobs: [{task: …, data: …, method: …}]。",
            ),
        )
    for key in content:
        if key not in ("base", "jobs"):
            raise unknown("key", "键", key, ["base", "jobs"])
    return content.get("base"), [_job(path, item) for item in content["jobs"]]


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
