"""`onebase train`."""

import math
from pathlib import Path
from typing import Annotated

import typer
import yaml

from onebase.adapters.store import StoredAdapter
from onebase.cli.display import run_display
from onebase.cli.session import (
    BaseOption,
    EncodingOption,
    JsonOption,
    LangOption,
    PrecisionOption,
    Session,
    WorkspaceOption,
    begin,
    note,
)
from onebase.data.columns import columns_of
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import DEFAULT_BASE
from onebase.serving.server_lock import yield_to_server
from onebase.training.job import Job, TaskFile, read_jobs
from onebase.training.stored_result import LEARNED, name_to_use, summary
from onebase.training.train import check_jobs, precision_for, train

ConfigOption = Annotated[Path | None, typer.Option("-c", "--config", help="A tasks.yaml.")]
TaskOption = Annotated[str | None, typer.Option("--task", help="The task's name.")]
DataOption = Annotated[str | None, typer.Option("--data", help="Its data file.")]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method", help="lora, qlora, ia3, prompt-tuning, p-tuning, p-tuning-v2, full; join by +."
    ),
]
InstructionOption = Annotated[
    str | None, typer.Option("--instruction", help="What the task is, in a sentence.")
]
HeldOutOption = Annotated[str | None, typer.Option("--held-out", help="A file to judge by.")]
TemplateOption = Annotated[
    str, typer.Option("--template", help="auto, chat, plain, or a text with {input}.")
]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option("--columns", "--column", help="input=a,output=b; repeatable."),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key=value; repeatable.")]
SeedOption = Annotated[int, typer.Option("--seed", help="The random seed.")]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out.")]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="Begin anew, not where an interrupted run stopped.")
]


def train_command(
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
    """Train one task, or every job of a tasks.yaml together on one base.

    Given again after an interruption, it goes on where it stopped.
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
    held_in = precision_for(tasks.jobs, precision or tasks.precision)
    session.workspace.require_writable()
    loaded = load_base(base or tasks.base or DEFAULT_BASE, held_in)
    show_trained(session, run_training(session, tasks.jobs, loaded, restart=restart))


def asked_for(
    config: Path | None,
    *,
    task: str | None,
    data: str | None,
    method: str,
    instruction: str | None,
    held_out: str | None,
    template: str,
    columns: list[str] | None,
    encoding: str | None,
    set_: list[str] | None,
    seed: int,
    skip_bad: bool,
) -> TaskFile:
    """The jobs that the flags of a training ask for. Raises UsageError."""
    if config is not None:
        own: dict[str, object] = {
            "task": task,
            "data": data,
            "instruction": instruction,
            "held-out": held_out,
        }
        own |= {
            "columns": columns,
            "encoding": encoding,
            "set": set_,
            "skip-bad": skip_bad,
            "seed": seed,
        }
        own |= {"method": method != "lora", "template": template != "auto"}
        if given := [f"--{name}" for name, value in own.items() if value]:
            flags = ", ".join(given)
            raise UsageError(
                say(f"Both -c and {flags} were given.", f"同时给出了 -c 和 {flags}。"),
                say("Write it in the tasks file, or leave -c out.", "请写进任务文件，或去掉 -c。"),
            )
        return read_jobs(config)
    if not task or not data:
        raise UsageError(
            say(
                "There is no job: --task and --data are missing.",
                "没有任务：缺少 --task 和 --data。",
            ),
            say("Give both, or a tasks.yaml with -c.", "请给出两者，或用 -c 指定 tasks.yaml。"),
        )
    job = Job(
        task=task,
        data=data,
        method=method,
        instruction=instruction,
        held_out=held_out,
        template=template,
        columns=columns_of(columns or []),
        encoding=encoding,
        skip_bad=skip_bad,
        seed=seed,
        set=settings(set_ or []),
    )
    return TaskFile(base=None, precision=None, jobs=[job])


def show_trained(session: Session, stored: list[StoredAdapter]) -> None:
    """The result of a training, begun or resumed."""
    session.show(
        {"run": stored[0].record["run"], "adapters": [summary(item) for item in stored]},
        *(report_line(item) for item in stored),
        ask_it(session, stored[0]),
    )


def ask_it(session: Session, stored: StoredAdapter) -> str:
    """The command that asks a task that was just trained: a classifier is asked for its label."""
    asked = f"--task {name_to_use(stored)}{session.workspace.option}"
    if stored.record.get("labels"):
        command = f"onebase classify {asked} --text …"
    else:
        command = f"onebase generate {asked} --prompt …"
    return say(f"Try: {command}", f"试试：{command}")


def load_base(name: str, precision: str | None) -> Base:
    """The base, announced: loading takes seconds. What it is held in is stated."""
    note(say(f"Loading {name} …", f"正在加载 {name} …"))
    base = Base.load(name, precision=precision)
    note(
        say(
            f"Loaded in {base.precision} on {base.device.type}.",
            f"已加载：精度 {base.precision}，设备 {base.device.type}。",
        )
    )
    return base


def run_training(
    session: Session, jobs: list[Job], base: Base, *, restart: bool = False
) -> list[StoredAdapter]:
    """Train the jobs with the live display, from where an interrupted run of them stopped."""
    with yield_to_server(session.workspace), run_display() as display:
        return train(
            jobs, base=base, workspace=session.workspace, observer=display, restart=restart
        )


def report_line(adapter: StoredAdapter) -> str:
    """One trained task in a sentence."""
    metrics = adapter.record["metrics"]
    loss, before = metrics["eval_loss"], metrics["base_eval_loss"]
    text = f"{adapter.task}@{adapter.version} ({adapter.record['method']}): "
    if metrics.get("diverged"):
        text += say(
            "its loss exploded or was no longer finite, lower learning_rate; ",
            "损失已发散或不是有限值，请减小 learning_rate；",
        )
    if metrics.get(LEARNED, True) is False:
        text += say(
            "nothing was learned, its gradient was 0 at every step, so it was not made current; ",
            "每一步的梯度都为 0，没有学到任何内容，因此未设为当前版本；",
        )
    if loss is None or before is None:
        return text + say("no held-out loss to judge by", "没有可供评估的留出损失")
    change = _change(before, loss)
    return text + say(
        f"held-out loss {before:.3f} -> {loss:.3f}{change}",
        f"留出损失 {before:.3f} -> {loss:.3f}{change}",
    )


def _change(before: float, now: float) -> str:
    """By how much a loss changed, in brackets; nothing where the base had none to lose."""
    if before <= 0 or not (math.isfinite(before) and math.isfinite(now)):
        return ""
    percent = round(100 * (now / before - 1))
    if percent == 0:
        return say(" (the same)", "（不变）")
    if percent < 0:
        return say(f" ({-percent} % lower)", f"（降低 {-percent} %）")
    return say(f" ({percent} % higher)", f"（升高 {percent} %）")


def settings(items: list[str]) -> dict[str, object]:
    """`key=value` texts, values read as YAML reads them. Raises UsageError."""
    return {key: _setting(key, value) for key, value in pairs(items).items()}


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


def pairs(items: list[str]) -> dict[str, str]:
    """`key=value` texts as a mapping. Raises UsageError."""
    for item in items:
        if "=" not in item or not item.split("=", 1)[0].strip():
            raise UsageError(
                say(f"{item!r} is not key=value.", f"{item!r} 不是 key=value 形式。"),
                say("Write it like rank=8.", "请写成 rank=8 这样。"),
            )
    found: dict[str, str] = {}
    for item in items:
        key, value = (part.strip() for part in item.split("=", 1))
        if found.get(key, value) != value:
            raise UsageError(
                say(
                    f"{key} is given twice: {found[key]!r} and {value!r}.",
                    f"{key} 给出了两次：{found[key]!r} 与 {value!r}。",
                ),
                say(f"Give {key} once.", f"{key} 只能给出一次。"),
            )
        found[key] = value
    return found
