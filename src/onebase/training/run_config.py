"""What a run was asked for, as its config.yaml holds it: from jobs, back to jobs, and compared."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from onebase.adapters.methods import METHODS
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.render_date import recorded
from onebase.training.job import Job
from onebase.training.job_state import Learner

# What must be the same for a run to go on; the rest says where things are.
_OF_RUN = ("base_fingerprint", "precision")
_OF_JOB = (
    *(
        "method",
        "instruction",
        "template",
        "columns",
        "encoding",
        "skip_bad",
        "seed",
        "set",
        "options",
    ),
    *("data_sha256", "held_out_sha256", "rows_sha256"),
)


def request_of(base: Base, learners: Sequence[Learner]) -> dict[str, Any]:
    """The config of a run of these learners: every setting in full, and hashes of all it needs."""
    config = {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "precision": base.precision.text,
        "folder": str(Path.cwd()),
        **recorded(_moment(learners)),
        "jobs": [_job(learner) for learner in learners],
    }
    plain: dict[str, Any] = yaml.safe_load(
        yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    )
    same = {
        **{key: plain[key] for key in _OF_RUN},
        "jobs": [
            [job["task"], *(job[key] for key in _OF_JOB if key not in _left_out(learner))]
            for job, learner in zip(plain["jobs"], learners, strict=True)
        ],
    }
    digest = hashlib.sha256(json.dumps(same, sort_keys=True, default=str).encode())
    return {"identity": digest.hexdigest(), **plain}


def _moment(learners: Sequence[Learner]) -> datetime:
    """When their rows were rendered: all at one moment."""
    moment = learners[0].template.moment
    assert moment is not None
    return moment


def _left_out(learner: Learner) -> list[str]:
    """What is not in the hash of a job: its rows where the chat template writes the date, which is
    another on another day; an encoding that was not given, which earlier versions did not know.
    """
    dated = ["rows_sha256"] if learner.template.dated else []
    return dated if learner.job.encoding else [*dated, "encoding"]


def _job(learner: Learner) -> dict[str, Any]:
    job, data = learner.job, learner.data
    options, own = job.options()
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
        "set": {
            **options.model_dump(),
            "learning_rate": _one_or_all(job.rates()),
            "beta2": _one_or_all(job.beta2s()),
            **own,
        },
        "options": learner.adapter.options,
        "data_sha256": data.dataset.sha256,
        "held_out_sha256": data.held_out_sha256,
        "rows_sha256": data.digest(),
        "torch": str(torch.__version__),
    }


def _one_or_all(values: dict[str, float]) -> float | dict[str, float]:
    """A value by method; alone where there is one method."""
    return values if len(values) > 1 else next(iter(values.values()))


def jobs_of(config: Mapping[str, Any]) -> list[Job]:
    """The jobs that a config describes, their data looked for where it was."""
    return [
        Job(
            task=item["task"],
            data=_placed(item["data"], config),
            held_out=None if item["held_out"] is None else _placed(item["held_out"], config),
            encoding=item.get("encoding"),
            set=_given(item["set"]),
            **{
                key: item[key]
                for key in ("method", "instruction", "template", "columns", "skip_bad", "seed")
            },
        )
        for item in config["jobs"]
    ]


def base_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """The name of a config's base, a folder looked for where it was, and its precision."""
    return _placed(config["base"], config), config["precision"]


def _placed(name: str, config: Mapping[str, Any]) -> str:
    """A path as it is to be read from here: relative ones are meant from the run's own folder."""
    folder = Path(config.get("folder", "."))
    if folder == Path.cwd() or not (folder / name).exists():
        return name
    return str(folder / name)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in full as a job takes them: values that differ by method are the methods' own."""
    given = dict(settings)
    for key in ("learning_rate", "beta2"):
        if isinstance(given[key], dict):
            values = set(given[key].values())
            given[key] = values.pop() if len(values) == 1 else None
    return given


def require_same(run: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError, naming every difference, unless a run asked for `before` may go on as
    `now`.
    """
    changed = differences(before, now)
    if not changed:
        return
    listed = "; ".join(changed)
    raise UsageError(
        say(
            f"Run {run} can't go on, what it was asked for has changed: {listed}.",
            f"训练 {run} 无法继续，其要求已改变：{listed}。",
        ),
        say(
            "Put it back as it was, or begin anew with onebase train.",
            "请恢复原状，或用 onebase train 重新开始。",
        ),
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What keeps a run asked for `before` from going on as `now`, in words."""
    found = [
        _changed(key, before.get(key), now[key]) for key in _OF_RUN if before.get(key) != now[key]
    ]
    was = {job["task"]: job for job in before["jobs"]}
    tasks = [job["task"] for job in now["jobs"]]
    if list(was) != tasks:
        return [*found, _changed("tasks", ", ".join(was), ", ".join(tasks))]
    for job in now["jobs"]:
        own = _differences_of_job(was[job["task"]], job)
        found += [f"{job['task']}: {difference}" for difference in own]
    return found


def _differences_of_job(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found: dict[str, str] = {}
    for key in _OF_JOB:
        old, new = _flat(key, before.get(key)), _flat(key, now[key])
        for name in {**old, **new}:
            # What a method makes of its settings and how rows become tokens follow from the rest.
            follows = name in found or (key == "rows_sha256" and found)
            if old.get(name) != new.get(name) and not follows:
                found[name] = _changed(name, old.get(name), new.get(name))
    return list(found.values())


def _flat(key: str, value: Any) -> dict[str, Any]:
    """Settings by their own names, those of one of several methods behind its name and a dot."""
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
