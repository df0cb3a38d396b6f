"""`onebase race`: many configurations at once, losers stopped early, the best kept."""

from pathlib import Path
from typing import Annotated

import typer

from onebase.cli.display import run_display
from onebase.cli.leaderboard import leaderboard_header, leaderboard_rows
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
    TaskOption,
    TemplateOption,
    ask_it,
    asked_for,
    load_base,
    report_line,
)
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE
from onebase.runs.interruption import Interrupted
from onebase.search.budget import Budget
from onebase.search.race import RaceResult, race
from onebase.search.space import Space, default_space, read_space
from onebase.search.successive_halving import candidate_job
from onebase.serving.server_lock import yield_to_server
from onebase.training.job import Job
from onebase.training.stored_result import summary
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
    jobs = [candidate_job(job, item, 1) for item in chosen]
    for item in jobs:
        item.options()
    session.workspace.require_writable()
    loaded = load_base(base or DEFAULT_BASE, precision_for(jobs, precision))
    with yield_to_server(session.workspace), run_display() as display:
        result = race(
            job,
            base=loaded,
            workspace=session.workspace,
            observer=display,
            space=raced_space,
            budget=allowed,
            count=configs,
        )
    show_raced(session, result)
    if result.end == "interrupted":
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


def show_raced(session: Session, result: RaceResult) -> None:
    """The result of a race: the ladder, the winner, and how it ended."""
    winner, adapter = result.entries[0].configuration, result.adapter
    _tell_how_it_ended(result)
    values = {
        "run": result.run.id,
        "task": adapter.task,
        "end": result.end,
        "winner": {
            "number": winner.number,
            "method": winner.method,
            "settings": dict(winner.settings),
            "eval_loss": adapter.metrics["eval_loss"],
        },
        "adapter": summary(adapter),
        "ladder": result.leaderboard,
        "plot": str(result.plot),
        "configurations": len(result.entries),
        "epochs": result.plan.epochs,
        "tokens": result.tokens,
        "judged_tokens": result.evaluated_tokens,
        "seconds": result.seconds,
    }
    rows = leaderboard_rows(result.plan, result.entries)
    session.table(values, leaderboard_header(result.plan), rows)
    if session.json:
        return
    for line in (
        say(f"Winner: {winner.text}", f"优胜：{winner.text}"),
        report_line(adapter),
        say(
            f"Learned from {result.tokens:,} tokens, judged by {result.evaluated_tokens:,}, in "
            f"{result.seconds:.0f} s.",
            f"共学习 {result.tokens:,} 个词元，评估 {result.evaluated_tokens:,} 个词元，"
            f"用时 {result.seconds:.0f} 秒。",
        ),
        say(f"The leaderboard as a picture: {result.plot}", f"排行榜图片：{result.plot}"),
        ask_it(session, adapter),
    ):
        print(line)


def _tell_how_it_ended(result: RaceResult) -> None:
    name = result.adapter.name
    if result.end == "interrupted":
        note(
            say(
                f"Interrupted: the best so far is kept as {name}. A race does not go on; the same "
                "command starts it anew.",
                f"已中断：当前最佳结果已保存为 {name}。竞赛不能继续，再次运行同一命令会重新开始。",
            )
        )
    elif result.end == "out of budget":
        note(
            say(
                f"The budget ended the race early: the best so far is kept as {name}.",
                f"预算已用完，竞赛提前结束：当前最佳结果已保存为 {name}。",
            )
        )
    elif result.end == "nobody left":
        note(
            say(
                f"The losses of all that were left exploded: the best before is kept as {name}.",
                f"剩余配置的损失全部发散：此前的最佳结果已保存为 {name}。",
            )
        )
