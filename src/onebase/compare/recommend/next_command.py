"""The command that a recommendation ends with, as it is typed."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onebase.adapters.methods import METHODS, parts_of
from onebase.adapters.workspace import Workspace
from onebase.compare.options import CompareOptions
from onebase.compare.recommend.limits import Limits
from onebase.compare.recommend.preferences import GOALS
from onebase.compare.result import Comparison
from onebase.runs.resume import path_from
from onebase.training.options import TrainOptions

# The options of `onebase compare` by their names in a config.
_COMPARE_OPTIONS = {
    "seeds": "--seeds",
    "share": "--share",
    "examples": "--examples",
    "metric": "--metric",
    "user_metric": "--score",
    "answer_tokens": "--answer-tokens",
    "tune": "--tune",
}


@dataclass(frozen=True)
class Asked:
    """A task as commands name it: its `data`, its `base` and `precision` where they are known, the other
    fields of its `job`, and the options that it was `compared` with.
    """

    task: str
    data: str
    base: str | None = None
    precision: str | None = None
    job: Mapping[str, Any] = field(default_factory=dict)
    compared: Mapping[str, Any] = field(default_factory=dict)

    def words(self, *, four_bit: bool = False) -> str:
        """The options that say how the data are read, and with which base. With `four_bit` the precision
        is left to the method, unless it is nf4.
        """
        job, precision = self.job, self.precision
        if four_bit and (precision or "").partition(":")[0] != "nf4":
            precision = None
        template = job.get("template")
        pairs = [
            ("--base", self.base),
            ("--precision", precision),
            ("--instruction", job.get("instruction")),
            ("--held-out", job.get("held_out")),
            ("--template", None if template == "auto" else template),
            *(("--column", f"{key}={name}") for key, name in (job.get("columns") or {}).items()),
            ("--encoding", job.get("encoding")),
        ]
        words = [f" {option} {shlex.quote(str(value))}" for option, value in pairs if value]
        return "".join(words) + (" --skip-bad" if job.get("skip_bad") else "")


def asked_of(comparison: Comparison) -> Asked:
    """The task of a comparison, as its config has it."""
    config = comparison.config
    job = dict(config.get("job") or {})
    if job.get("held_out"):
        job["held_out"] = path_from(config, job["held_out"])
    return Asked(
        comparison.task,
        path_from(config, comparison.data),
        comparison.base,
        config.get("precision"),
        job,
        config.get("compare") or {},
    )


def train_command(
    asked: Asked, method: str, settings: Mapping[str, Any], workspace: Workspace
) -> str:
    """The training of one method with the settings that were compared."""
    task, data, chosen = shlex.quote(asked.task), shlex.quote(asked.data), shlex.quote(method)
    four_bit, changed = "qlora" in parts_of(method), changed_settings(method, settings)
    more = asked.words(four_bit=four_bit) + _set(changed)
    return f"onebase train --task {task} --data {data} --method {chosen}{more}{workspace.option}"


def changed_settings(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from the method's defaults."""
    fields = dict(TrainOptions.model_fields)
    for part in parts_of(method):
        fields |= METHODS[part].options.model_fields
    defaults = {
        name: field.get_default(call_default_factory=True) for name, field in fields.items()
    }
    if method in METHODS:
        defaults |= {"learning_rate": METHODS[method].learning_rate, "beta2": METHODS[method].beta2}
    return {
        name: value
        for name, value in settings.items()
        if value is not None and (name not in defaults or value != defaults[name])
    }


def compare_command(asked: Asked, methods: Sequence[str], workspace: Workspace) -> str:
    """A comparison of these methods, of all of them where none is named."""
    task, data = shlex.quote(asked.task), shlex.quote(asked.data)
    more = asked.words() + _set(asked.job.get("set") or {})
    for key, option in _COMPARE_OPTIONS.items():
        default = getattr(CompareOptions, key)
        value = asked.compared.get(key, default)
        if key == "tune" and value is not None:
            value = f"{value}tokens"
        if value != default:
            more += f" {option} {shlex.quote(str(value))}"
    if methods:
        more += f" --methods {','.join(methods)}"
    return f"onebase compare --task {task} --data {data}{more}{workspace.option}"


def recommend_command(
    task: str, base: str | None, limits: Limits, preference: str, workspace: Workspace
) -> str:
    """The question again, for a task or with other limits."""
    given = limits.given()
    words = [
        *([f"--base {shlex.quote(base)}"] if base else []),
        *_limit("--memory", given.get("peak_memory_bytes"), 1e6, "MB"),
        *_limit("--time", given.get("seconds"), 1, "s"),
        *_limit("--adapter-size", given.get("adapter_bytes"), 1e3, "KB"),
        *_preference(preference),
    ]
    more = "".join(f" {word}" for word in words)
    return f"onebase recommend --task {shlex.quote(task)}{more}{workspace.option}"


def _set(settings: Mapping[str, Any]) -> str:
    """`--set` for each setting, its value in YAML, which `--set` reads."""
    return "".join(
        f" --set {shlex.quote(f'{key}={value if isinstance(value, str) else json.dumps(value)}')}"
        for key, value in settings.items()
        if value is not None
    )


def _limit(option: str, value: float | None, unit: float, name: str) -> list[str]:
    return [] if value is None else [option, f"{math.ceil(value / unit)}{name}"]


def _preference(name: str) -> list[str]:
    if name == "quality":  # as without it
        return []
    return ["--goal" if name in GOALS else "--scenario", name]
