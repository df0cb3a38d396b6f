"""`onebase plan`."""

from typing import Any

import typer

from onebase.cli.session import (
    BaseOption,
    EncodingOption,
    JsonOption,
    LangOption,
    PrecisionOption,
    WorkspaceOption,
    begin,
    note,
)
from onebase.cli.training import (
    ColumnsOption,
    ConfigOption,
    DataOption,
    HeldOutOption,
    InstructionOption,
    MethodOption,
    RestartOption,
    SeedOption,
    SetOption,
    SkipBadOption,
    TaskOption,
    TemplateOption,
    asked_for,
)
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE
from onebase.planning.advice import gigabytes
from onebase.planning.plan import Plan, plan
from onebase.training.train import check_jobs


def plan_command(
    config: ConfigOption = None,
    task: TaskOption = None,
    data: DataOption = None,
    method: MethodOption = "lora",
    base: BaseOption = None,
    precision: PrecisionOption = None,
    instruction: InstructionOption = None,
    held_out: HeldOutOption = None,
    template: TemplateOption = "auto",
    columns: ColumnsOption = None,
    encoding: EncodingOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
    skip_bad: SkipBadOption = False,
    restart: RestartOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """What a training would take, and whether it fits: the flags are those of train.

    A few steps are tried; nothing is kept. Estimates are of the whole training, from its start.
    """
    session = begin(workspace, as_json, lang)
    tasks = asked_for(
        config,
        task=task,
        data=data,
        method=method,
        instruction=instruction,
        held_out=held_out,
        template=template,
        columns=columns,
        encoding=encoding,
        set_=set_,
        seed=seed,
        skip_bad=skip_bad,
    )
    check_jobs(tasks.jobs)
    name = base or tasks.base or DEFAULT_BASE
    note(say(f"Loading {name} and trying a few steps …", f"正在加载 {name} 并试训练几步 …"))
    made = plan(
        tasks.jobs,
        base=name,
        precision=precision or tasks.precision,
        workspace=session.workspace,
    )
    result = made.to_dict()
    if made.verdict != "does not fit":
        session.table(result, _columns(), _rows(made))
        if not as_json:
            session.show(result, *_lines(made), *made.advice)
        return
    error = made.error()
    if as_json:
        detail = {"code": error.code, "message": error.message, "remedy": error.remedy}
        session.show({**result, "error": detail})
        raise typer.Exit(error.exit_code)
    session.table(result, _columns(), _rows(made))
    session.show(result, *_lines(made))
    raise error


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
            None if item.adapter_bytes is None else gigabytes(item.adapter_bytes),
        ]
        for item in made.tasks
    ]


def _lines(made: Plan) -> list[str]:
    """The estimates and the verdict, in sentences."""
    verdict = {
        "fits": say("It fits.", "可以训练：资源充足。"),
        "tight": say(
            "Tight: it fits, with less than a fifth of the room to spare.",
            "勉强可以训练：剩余空间不足五分之一。",
        ),
        "does not fit": say("It does not fit.", "无法训练：资源不足。"),
    }[made.verdict]
    memory, free = gigabytes(made.memory_bytes), gigabytes(made.available_bytes)
    if made.seconds is None:
        least = say(
            f"memory (estimate): at least {memory}; free: {free}",
            f"内存（估计）：至少 {memory}；可用：{free}",
        )
        return [least, verdict]
    time, disk = _duration(made.seconds), gigabytes(made.disk_bytes or 0)
    room = gigabytes(made.free_disk_bytes)
    lost = ", ".join(made.measured["trouble"])
    trouble = say(
        f"{lost}: its loss exploded or was not finite in the trial, so the estimates may be off; "
        "lower learning_rate.",
        f"{lost}：试训练中损失已发散或不是有限值，估计可能不准；请减小 learning_rate。",
    )
    return [
        *(
            f"{item['task']}: {text}"
            for item in made.measured.get("tasks", ())
            for text in item.get("notes", ())
        ),
        *([trouble] if lost else []),
        say(
            f"memory (estimate): {memory} at the peak; free: {free}",
            f"内存（估计）：峰值 {memory}；可用：{free}",
        ),
        say(
            f"time (estimate): {time} for all epochs, loading and storing included",
            f"时间（估计）：全部轮次 {time}，含加载和保存",
        ),
        say(
            f"disk (estimate): {disk} with its checkpoints; free: {room}",
            f"磁盘（估计）：{disk}，含检查点；可用：{room}",
        ),
        verdict,
    ]


def _duration(seconds: float) -> str:
    """For people: `48 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return say(f"{seconds:.0f} s", f"{seconds:.0f} 秒")
    if seconds < 7200:
        return say(f"{seconds / 60:.0f} min", f"{seconds / 60:.0f} 分钟")
    return say(f"{seconds / 3600:.1f} h", f"{seconds / 3600:.1f} 小时")
