"""A job: one task, its data, method and settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from onebase.adapters.methods import METHODS, parse_options, parts_of, settings_by_method
from onebase.data.yaml_file import read_yaml
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.training.options import TrainOptions


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
    **dict.fromkeys(Job.__dataclass_fields__, str),
    **{"columns": dict, "skip_bad": bool, "seed": int, "set": dict},
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
    known = list(_KINDS)
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
