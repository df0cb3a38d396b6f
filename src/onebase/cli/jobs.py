"""The jobs that a command's flags ask for."""

from dataclasses import asdict, fields
from typing import Any

import yaml

from onebase.cli.options import JobFlags, LearningFlags
from onebase.data.columns import columns_of
from onebase.errors import UsageError
from onebase.language import say
from onebase.quantity import listed
from onebase.training.job import Job, TaskFile, read_jobs


def tasks_of(job: JobFlags, learning: LearningFlags) -> TaskFile:
    """The jobs to train: those of the tasks file, or one from the flags. Raises UsageError."""
    if job.config is not None:
        _refuse_flags_beside_a_file(job, learning)
        return read_jobs(job.config)
    if not job.task or not job.data:
        raise UsageError(
            say(
                "There is no job: --task and --data are required.",
                "没有任务：必须给出 --task 和 --data。",
            ),
            say(
                "Give both options, or a tasks.yaml with -c.",
                "请给出这两个选项，或用 -c 指定 tasks.yaml。",
            ),
        )
    fields = job_fields(learning)
    return TaskFile(None, None, [Job(task=job.task, data=job.data, method=job.method, **fields)])


def job_fields(learning: LearningFlags) -> dict[str, Any]:
    """The fields that LearningFlags set in a Job or an AlignJob. Raises UsageError."""
    flags = asdict(learning)
    columns, items = flags.pop("columns"), flags.pop("set_")
    return {
        **flags,
        "columns": columns_of(columns or []),
        "set": settings(items or []),
    }


def _refuse_flags_beside_a_file(job: JobFlags, learning: LearningFlags) -> None:
    flags = flags_given(job, learning)
    if flags:
        raise UsageError(
            say(f"Both -c and {listed(flags)} were given.", f"同时给出了 -c 和 {listed(flags)}。"),
            say(
                "Write these settings in the tasks file, or leave out -c.",
                "请把这些设置写进任务文件，或去掉 -c。",
            ),
        )


def flags_given(*groups: Any) -> list[str]:
    """The options of some groups that were given another value than their default, as they are typed."""
    return [
        f"--{'no-' if value is False else ''}{field.name.strip('_').replace('_', '-')}"
        for group in groups
        for field in fields(group)
        if field.name != "config"
        and (value := getattr(group, field.name)) not in (None, [], "", field.default)
    ]


def settings(items: list[str]) -> dict[str, object]:
    """`key=value` texts as a mapping, with values read as YAML. Raises UsageError."""
    texts: dict[str, str] = {}
    for item in items:
        key, separator, text = (part.strip() for part in item.partition("="))
        if not separator or not key:
            raise UsageError(
                say(f"{item!r} is not key=value.", f"{item!r} 不是 key=value 形式。"),
                say("Write it like rank=8.", "请写成 rank=8 这样。"),
            )
        if texts.setdefault(key, text) != text:
            raise UsageError(
                say(
                    f"{key} is given twice: {texts[key]!r} and {text!r}.",
                    f"{key} 给出了两次：{texts[key]!r} 与 {text!r}。",
                ),
                say(f"Give {key} once.", f"{key} 只能给出一次。"),
            )
    return {key: _setting(key, text) for key, text in texts.items()}


def _setting(key: str, text: str) -> object:
    try:
        return _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UsageError(
            say(f"{key}={text!r} is not valid.", f"{key}={text!r} 无效。"),
            say("Write a number or a word, like rank=8.", "请写成数字或单词，例如 rank=8。"),
        ) from error


def _number(value: object) -> object:
    """The value, with 3e-2 as a number: YAML 1.1 reads it as a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
