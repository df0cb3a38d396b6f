"""A plan as text: a table of the tasks, the estimates and the verdict."""

from typing import Any

import typer

from onebase.cli.session import Session
from onebase.errors import error_as_values
from onebase.language import say
from onebase.planning.plan import Plan
from onebase.quantity import duration, listed, size


def show_plan(session: Session, made: Plan) -> None:
    """Print a plan. Raises CapacityError for one that does not fit."""
    result = made.to_dict()
    fits = made.verdict != "does not fit"
    if session.json and fits:
        session.show(result)
    elif session.json:
        error = made.error()
        session.show({**result, "error": error_as_values(error)})
        raise typer.Exit(error.exit_code)
    else:
        session.table(result, _columns(), _rows(made))
        session.show(result, *_lines(made), *(made.advice if fits else ()))
        if not fits:
            raise made.error()


def _columns() -> list[str]:
    return [
        say("task", "任务"),
        say("method", "方法"),
        say("trainable parameters", "可训练参数"),
        say("of the base", "占基座"),
        say("steps", "步数"),
        say("adapter", "适配器大小"),
    ]


def _rows(made: Plan) -> list[list[Any]]:
    return [
        [
            item.task,
            item.method,
            None if item.trainable is None else f"{item.trainable:,}",
            None if item.trainable_percent is None else f"{item.trainable_percent:.3g} %",
            item.steps,
            None if item.adapter_bytes is None else size(item.adapter_bytes),
        ]
        for item in made.tasks
    ]


def _lines(made: Plan) -> list[str]:
    """The estimates and the verdict, in sentences."""
    verdict = {
        "fits": say("It fits.", "可以训练：资源充足。"),
        "tight": say(
            "Tight: it fits, with less than a fifth to spare.",
            "勉强可以训练：剩余空间不足五分之一。",
        ),
        "does not fit": say("It does not fit.", "无法训练：资源不足。"),
    }[made.verdict]
    memory, free = size(made.memory_bytes), size(made.available_bytes)
    if made.seconds is None:
        estimate = say(
            f"memory (estimate): at least {memory}; free: {free}",
            f"内存（估计）：至少 {memory}；可用：{free}",
        )
        return [estimate, verdict]
    time, disk = duration(made.seconds), size(made.disk_bytes or 0)
    free_disk = size(made.free_disk_bytes)
    diverged = listed(made.measured["trouble"])
    warning = say(
        f"{diverged}: its loss exploded or was not finite in the dry run, so the estimates may be off; "
        "lower learning_rate.",
        f"{diverged}：试训练中损失已发散或不是有限值，估计可能不准；请减小 learning_rate。",
    )
    return [
        *(
            f"{item['task']}: {text}"
            for item in made.measured.get("tasks", ())
            for text in item.get("notes", ())
        ),
        *([warning] if diverged else []),
        say(
            f"memory (estimate): {memory} at the peak; free: {free}",
            f"内存（估计）：峰值 {memory}；可用：{free}",
        ),
        say(
            f"time (estimate): {time} for all epochs, loading and storing included",
            f"时间（估计）：{time}（全部各轮，含加载和保存）",
        ),
        say(
            f"disk (estimate): {disk} with its checkpoints; free: {free_disk}",
            f"磁盘（估计）：{disk}，含检查点；可用：{free_disk}",
        ),
        verdict,
    ]
