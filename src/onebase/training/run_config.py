"""The config.yaml of a training run: written from jobs, read back, compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from onebase.adapters.methods import METHODS
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.identity import as_yaml_reads, base_config, with_identity
from onebase.runs.render_date import render_date_config
from onebase.runs.resume import incomplete_config, path_from
from onebase.runs.run import Run
from onebase.training.job import Job
from onebase.training.job_state import JobState

# What must be the same for a run to be resumed; the rest says where things are.
_OF_RUN = ("base_fingerprint", "precision")
_GIVEN = ("method", "instruction", "template", "columns", "encoding", "skip_bad", "seed", "set")
_OF_JOB = (*_GIVEN, "options", "data_sha256", "held_out_sha256", "rows_sha256")


def run_config(base: Base, states: Sequence[JobState]) -> dict[str, Any]:
    """The config of a run of these jobs: every setting in full, and hashes of all that it needs."""
    rendered_at = states[0].template.moment  # the same for all of them
    assert rendered_at is not None
    config = as_yaml_reads(
        {
            **base_config(base),
            **render_date_config(rendered_at),
            "jobs": [_job_config(state) for state in states],
        }
    )
    same = {
        **{key: config[key] for key in _OF_RUN},
        "jobs": [
            [job["task"], *(job[key] for key in _OF_JOB if key not in _not_hashed(state))]
            for job, state in zip(config["jobs"], states, strict=True)
        ],
    }
    return with_identity(config, same)


def _not_hashed(state: JobState) -> list[str]:
    """The keys that are left out of a job's hash: its rows if the chat template writes the date, which
    changes from day to day; an encoding that was not given, which earlier versions did not have.
    """
    dated = ["rows_sha256"] if state.template.dated else []
    return dated if state.job.encoding else [*dated, "encoding"]


def _job_config(state: JobState) -> dict[str, Any]:
    job, data = state.job, state.data
    options, method_settings = job.options()
    return {
        **as_given(job),
        "set": {
            **options.model_dump(),
            "learning_rate": _one_or_all(job.rates()),
            "beta2": _one_or_all(job.beta2s()),
            **method_settings,
        },
        "options": state.adapter.options,
        "data_sha256": data.dataset.sha256,
        "held_out_sha256": data.held_out_sha256,
        "rows_sha256": data.digest(),
        "torch": str(torch.__version__),
    }


def as_given(job: Job) -> dict[str, Any]:
    """A job in plain values, its settings as they were given."""
    return {
        "task": job.task,
        "data": str(job.data),
        "held_out": None if job.held_out is None else str(job.held_out),
        "method": job.method,
        "instruction": job.instruction,
        "template": job.template,
        "columns": dict(job.columns),
        "encoding": job.encoding,
        "skip_bad": job.skip_bad,
        "seed": job.seed,
        "set": dict(job.set),
    }


def _one_or_all(values: dict[str, float]) -> float | dict[str, float]:
    """A value by method; alone where there is one method."""
    return values if len(values) > 1 else next(iter(values.values()))


def jobs_in(config: Mapping[str, Any]) -> list[Job]:
    """The jobs of a config, with the paths of their data as they are read from here."""
    return [
        Job(
            task=item["task"],
            data=path_from(config, item["data"]),
            held_out=None if item["held_out"] is None else path_from(config, item["held_out"]),
            encoding=item.get("encoding"),
            set=_given(item["set"]),
            **{
                key: item[key]
                for key in ("method", "instruction", "template", "columns", "skip_bad", "seed")
            },
        )
        for item in config["jobs"]
    ]


def base_in(run: Run) -> tuple[str, str]:
    """The name (or folder) of a run's base, and its precision. Raises CorruptFileError."""
    try:
        config = run.config
        return path_from(config, config["base"]), config["precision"]
    except (KeyError, TypeError) as error:
        raise incomplete_config(run, error) from error


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in full as a job takes them: values that differ by method are the methods' defaults."""
    given = dict(settings)
    for key in ("learning_rate", "beta2"):
        if isinstance(given[key], dict):
            values = set(given[key].values())
            given[key] = values.pop() if len(values) == 1 else None
    return given


def require_same_config(run: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError, naming every difference, unless a run of config `before` may continue as `now`."""
    changed = differences(before, now)
    if not changed:
        return
    listed = "; ".join(changed)
    raise UsageError(
        say(
            f"Run {run} can't be resumed, because its config has changed: {listed}.",
            f"训练 {run} 无法继续，其配置已改变：{listed}。",
        ),
        say(
            "Restore it, or start again with onebase train.",
            "请恢复原状，或用 onebase train 重新开始。",
        ),
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two configs that keep a run from being resumed, in words."""
    changed = [
        _changed(key, before.get(key), now[key]) for key in _OF_RUN if before.get(key) != now[key]
    ]
    was = {job["task"]: job for job in before["jobs"]}
    tasks = [job["task"] for job in now["jobs"]]
    if list(was) != tasks:
        return [*changed, _changed("tasks", ", ".join(was), ", ".join(tasks))]
    for job in now["jobs"]:
        changed += [
            f"{job['task']}: {difference}" for difference in _changes_of_job(was[job["task"]], job)
        ]
    return changed


def _changes_of_job(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changed: dict[str, str] = {}
    for key in _OF_JOB:
        old, new = _flat(key, before.get(key)), _flat(key, now[key])
        for name in {**old, **new}:
            # The options that a method derives from its settings, and the tokens, follow from the rest.
            follows = name in changed or (key == "rows_sha256" and changed)
            if old.get(name) != new.get(name) and not follows:
                changed[name] = _changed(name, old.get(name), new.get(name))
    return list(changed.values())


def _flat(key: str, value: Any) -> dict[str, Any]:
    """Settings by name; those of one of several methods follow its name and a dot."""
    if not isinstance(value, dict):
        return {key: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        nested = key == "options" and isinstance(inner, dict) and name in METHODS
        flat |= {f"{name}.{k}": v for k, v in inner.items()} if nested else {name: inner}
    return flat


def _changed(key: str, before: object, now: object) -> str:
    contents = {
        "base_fingerprint": say("the weights of the base", "基座的权重"),
        "data_sha256": say("the content of its data", "训练数据的内容"),
        "held_out_sha256": say("the content of its held-out data", "留出数据的内容"),
        "rows_sha256": say(
            "how its rows become tokens (the tokenizer, the chat template, or the version of onebase)",
            "数据转换为词元的方式（分词器、对话模板或 onebase 的版本）",
        ),
    }
    return contents.get(key) or f"{key} {before!r} -> {now!r}"
