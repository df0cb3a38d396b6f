"""The jobs that a command's flags ask for."""

from dataclasses import asdict
from typing import Any

import yaml

from onebase.cli.options import JobFlags, LearningFlags
from onebase.data.columns import columns_of
from onebase.errors import UsageError
from onebase.language import say
from onebase.training.job import Job, TaskFile, read_jobs


def tasks_of(job: JobFlags, learning: LearningFlags) -> TaskFile:
    """The jobs of a training: those of its tasks file, or one from the flags. Raises UsageError."""
    if job.config is not None:
        _refuse_flags_beside_a_file(job, learning)
        return read_jobs(job.config)
    if not job.task or not job.data:
        raise UsageError(
            say(
                "There is no job: --task and --data are missing.",
                "没有任务：缺少 --task 和 --data。",
            ),
            say("Give both, or a tasks.yaml with -c.", "请给出两者，或用 -c 指定 tasks.yaml。"),
        )
    fields = job_fields(learning)
    return TaskFile(None, None, [Job(task=job.task, data=job.data, method=job.method, **fields)])


def job_fields(learning: LearningFlags) -> dict[str, Any]:
    """The fields of a Job or an AlignJob that are the same flags everywhere. Raises UsageError."""
    flags = asdict(learning)
    columns, given_settings = flags.pop("columns"), flags.pop("set_")
    return {
        **flags,
        "columns": columns_of(columns or []),
        "set": settings(given_settings or []),
    }


def _refuse_flags_beside_a_file(job: JobFlags, learning: LearningFlags) -> None:
    given = asdict(job) | asdict(learning)
    default = asdict(JobFlags()) | asdict(LearningFlags())
    flags = [
        f"--{name.strip('_').replace('_', '-')}"
        for name, value in given.items()
        if name != "config" and value and value != default[name]
    ]
    if flags:
        listed = ", ".join(flags)
        raise UsageError(
            say(f"Both -c and {listed} were given.", f"同时给出了 -c 和 {listed}。"),
            say("Write it in the tasks file, or leave -c out.", "请写进任务文件，或去掉 -c。"),
        )


def settings(items: list[str]) -> dict[str, object]:
    """`key=value` texts, with values read as YAML. Raises UsageError."""
    return {key: _setting(key, value) for key, value in _pairs(items).items()}


def _setting(key: str, text: str) -> object:
    try:
        return _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UsageError(
            say(f"{key}={text!r} is not valid.", f"{key}={text!r} 无效。"),
            say("Write a number or a word, like rank=8.", "请写成数字或单词，例如 rank=8。"),
        ) from error


def _number(value: object) -> object:
    """YAML 1.1 reads 3e-2 as a text; it is a number here."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _pairs(items: list[str]) -> dict[str, str]:
    """`key=value` texts as a mapping. Raises UsageError."""
    for item in items:
        if "=" not in item or not item.split("=", 1)[0].strip():
            raise UsageError(
                say(f"{item!r} is not key=value.", f"{item!r} 不是 key=value 形式。"),
                say("Write it like rank=8.", "请写成 rank=8 这样。"),
            )
    values: dict[str, str] = {}
    for item in items:
        key, value = (part.strip() for part in item.split("=", 1))
        if values.get(key, value) != value:
            raise UsageError(
                say(
                    f"{key} is given twice: {values[key]!r} and {value!r}.",
                    f"{key} 给出了两次：{values[key]!r} 与 {value!r}。",
                ),
                say(f"Give {key} once.", f"{key} 只能给出一次。"),
            )
        values[key] = value
    return values
