"""`onebase race`: many configurations at once, losers stopped early, the best kept."""

from pathlib import Path
from typing import Annotated

import typer

from onebase.cli.leaderboard import RaceDisplay, ladder_header, ladder_rows
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
from onebase.cli.training import (
    ColumnsOption,
    DataOption,
    HeldOutOption,
    InstructionOption,
    SeedOption,
    SetOption,
    SkipBadOption,
    Stopped,
    TaskOption,
    TemplateOption,
    asked_for,
    load_base,
    report_line,
)
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE
from onebase.runs.interruption import Interrupted
from onebase.search.budget import Budget
from onebase.search.race import Raced, race
from onebase.search.space import Space, default_space, read_space
from onebase.search.successive_halving import entrant_job
from onebase.serving.server_lock import yield_to_server
from onebase.training.execution import summary
from onebase.training.job import Job
from onebase.training.stored_result import asked_as
from onebase.training.train import precision_for


def race_command(
    task: TaskOption = None,
    data: DataOption = None,
    budget: Annotated[
        str | None,
        typer.Option(help="600s, 10m, 1h, or tokens to learn from: 200k, 200000tokens."),
    ] = None,
    configs: Annotated[
        int | None, typer.Option(help="How many configurations; else by the budget.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="The winner's epochs; else by the budget.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Race these alone, separated by commas.")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="A YAML file: method: {setting: [values]}, or a list.")
    ] = None,
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
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Race many configurations at one task, stop losers early, and keep the best.

    All that are left learn together on one base. Ctrl-C at any time keeps the best so far.
    """
    session = begin(workspace, as_json, lang)
    if not task or not data:
        raise UsageError(
            say(
                "There is nothing to race at: --task and --data are missing.",
                "没有竞赛内容：缺少 --task 和 --data。",
            ),
            say("Give both.", "请给出两者。"),
        )
    allowed = None if budget is None else Budget.read(budget)
    asked = asked_for(
        None,
        task=task,
        data=data,
        method="lora",
        instruction=instruction,
        held_out=held_out,
        template=template,
        columns=columns,
        encoding=encoding,
        set_=[*(set_ or []), *([f"epochs={epochs}"] if epochs is not None else [])],
        seed=seed,
        skip_bad=skip_bad,
    )
    (job,) = asked.jobs
    raced_space = _space(methods, space, job)
    chosen = raced_space.first(len(raced_space.configurations) if configs is None else configs)
    jobs = [entrant_job(job, item, 1) for item in chosen]
    for item in jobs:
        item.options()
    session.workspace.require_writable()
    loaded = load_base(base or DEFAULT_BASE, precision_for(jobs, precision))
    try:
        with yield_to_server(session.workspace), RaceDisplay() as display:
            raced = race(
                job,
                base=loaded,
                workspace=session.workspace,
                watcher=display,
                space=raced_space,
                budget=allowed,
                count=configs,
            )
    except Interrupted as stop:
        # Typer would leave at any KeyboardInterrupt without a word.
        raise Stopped(stop.message, stop.remedy) from stop
    show_raced(session, raced)
    if raced.end == "interrupted":
        raise typer.Exit(Interrupted.exit_code)


def _space(methods: str | None, file: Path | None, job: Job) -> Space:
    if methods is not None and file is not None:
        raise UsageError(
            say("Both --methods and --space were given.", "同时给出了 --methods 和 --space。"),
            say("Leave one of the two out.", "请去掉其中之一。"),
        )
    if file is not None:
        return read_space(file)
    names = [name.strip() for name in methods.split(",")] if methods else []
    return default_space(names, fixed=list(job.set))


def show_raced(session: Session, raced: Raced) -> None:
    """The result of a race: the ladder, the winner, and how it ended."""
    winner, adapter = raced.places[0].configuration, raced.adapter
    _tell_how_it_ended(raced)
    result = {
        "run": raced.run.id,
        "task": adapter.task,
        "end": raced.end,
        "winner": {
            "number": winner.number,
            "method": winner.method,
            "settings": dict(winner.settings),
            "eval_loss": adapter.metrics["eval_loss"],
        },
        "adapter": summary(adapter),
        "ladder": raced.ladder,
        "plot": str(raced.plot),
        "configurations": len(raced.places),
        "epochs": raced.plan.epochs,
        "tokens": raced.tokens,
        "judged_tokens": raced.judged_tokens,
        "seconds": raced.seconds,
    }
    rows = ladder_rows(raced.plan, raced.places)
    session.table(result, ladder_header(raced.plan), rows)
    if session.json:
        return
    for line in (
        say(f"Winner: {winner.text}", f"优胜：{winner.text}"),
        report_line(adapter),
        say(
            f"Learned from {raced.tokens:,} tokens, judged by {raced.judged_tokens:,}, in "
            f"{raced.seconds:.0f} s.",
            f"共学习 {raced.tokens:,} 个词元，评估 {raced.judged_tokens:,} 个词元，"
            f"用时 {raced.seconds:.0f} 秒。",
        ),
        say(f"The ladder as a picture: {raced.plot}", f"天梯图：{raced.plot}"),
        say(
            f"Try: onebase generate --task {asked_as(adapter)} --prompt …",
            f"试试：onebase generate --task {asked_as(adapter)} --prompt …",
        ),
    ):
        print(line)


def _tell_how_it_ended(raced: Raced) -> None:
    name = raced.adapter.name
    if raced.end == "interrupted":
        note(
            say(
                f"Interrupted: the best so far is kept as {name}. A race does not go on; the same "
                "command starts it anew.",
                f"已中断：当前最佳结果已保存为 {name}。竞赛不能继续，再次运行同一命令会重新开始。",
            )
        )
    elif raced.end == "out of budget":
        note(
            say(
                f"The budget ended the race early: the best so far is kept as {name}.",
                f"预算已用完，竞赛提前结束：当前最佳结果已保存为 {name}。",
            )
        )
    elif raced.end == "nobody left":
        note(
            say(
                f"The losses of all that were left exploded: the best before is kept as {name}.",
                f"剩余配置的损失全部发散：此前的最佳结果已保存为 {name}。",
            )
        )
