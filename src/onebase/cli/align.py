"""`onebase align`: reward models, PPO, DPO, KTO, and scoring answers."""

from typing import Annotated

import typer

from onebase.adapters.store import StoredAdapter
from onebase.align.base_choice import base_for_job
from onebase.align.dpo import train_dpo
from onebase.align.job import AlignJob, check_job
from onebase.align.kto import train_kto
from onebase.align.ppo import train_ppo
from onebase.align.resume import resume_aligned
from onebase.align.reward_model import DEFAULT_METHOD, train_reward
from onebase.cli.display import run_display
from onebase.cli.scoring import score_command
from onebase.cli.session import (
    BaseOption,
    EncodingOption,
    JsonOption,
    LangOption,
    PrecisionOption,
    Session,
    WorkspaceOption,
    begin,
)
from onebase.cli.stdout import prints_to_stderr
from onebase.cli.training import (
    ColumnsOption,
    HeldOutOption,
    InstructionOption,
    RestartOption,
    SeedOption,
    SetOption,
    SkipBadOption,
    TemplateOption,
    ask_it,
    load_base,
    settings,
)
from onebase.data.columns import columns_of
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.serving.server_lock import yield_to_server
from onebase.training.stored_result import name_to_use, summary

align_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Learn from preferences and rewards: reward models, PPO, DPO, KTO.",
)
align_app.command("score")(score_command)
TaskOption = Annotated[str, typer.Option("--task", help="The task's name.")]
DataOption = Annotated[str, typer.Option("--data", help="Its data file.")]
MethodOption = Annotated[
    str | None,
    typer.Option("--method", help="Begin afresh by this method, not from the task's adapter."),
]
FromOption = Annotated[
    str | None, typer.Option("--from", help="The adapter to begin from: task or task@2.")
]


@align_app.command("reward")
def reward_command(
    task: TaskOption,
    data: DataOption,
    method: MethodOption = None,
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
    """Learn to score answers, from pairs (prompt, chosen, rejected) or ratings (text, rating)."""
    session = begin(workspace, as_json, lang)
    job = _job(
        task,
        data,
        method or DEFAULT_METHOD,
        None,
        instruction,
        held_out,
        template,
        columns,
        encoding,
        set_,
        seed,
        skip_bad,
    )
    session.workspace.require_writable()
    loaded = _base(session, job, base, precision)
    with yield_to_server(session.workspace), run_display() as display:
        stored = train_reward(
            job, base=loaded, workspace=session.workspace, observer=display, restart=restart
        )
    show_aligned(session, stored)


@align_app.command("dpo")
def dpo_command(
    task: TaskOption,
    data: DataOption,
    method: MethodOption = None,
    start: FromOption = None,
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
    """Learn from pairs of answers (prompt, chosen, rejected), without a reward model."""
    session = begin(workspace, as_json, lang)
    job = _job(
        task,
        data,
        method,
        start,
        instruction,
        held_out,
        template,
        columns,
        encoding,
        set_,
        seed,
        skip_bad,
    )
    session.workspace.require_writable()
    loaded = _base(session, job, base, precision)
    with yield_to_server(session.workspace), run_display() as display:
        stored = train_dpo(
            job, base=loaded, workspace=session.workspace, observer=display, restart=restart
        )
    show_aligned(session, stored)


@align_app.command("kto")
def kto_command(
    task: TaskOption,
    data: DataOption,
    method: MethodOption = None,
    start: FromOption = None,
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
    """Learn from single answers judged good or bad (prompt, completion, label)."""
    session = begin(workspace, as_json, lang)
    job = _job(
        task,
        data,
        method,
        start,
        instruction,
        held_out,
        template,
        columns,
        encoding,
        set_,
        seed,
        skip_bad,
    )
    session.workspace.require_writable()
    loaded = _base(session, job, base, precision)
    with yield_to_server(session.workspace), run_display() as display:
        stored = train_kto(
            job, base=loaded, workspace=session.workspace, observer=display, restart=restart
        )
    show_aligned(session, stored)


@align_app.command("ppo")
def ppo_command(
    task: TaskOption,
    prompts: Annotated[str, typer.Option("--prompts", help="A file of prompts.")],
    reward: Annotated[
        str, typer.Option("--reward", help="A reward model's task, or module:function.")
    ],
    advantage: Annotated[
        str | None, typer.Option("--advantage", help="gae, or group (GRPO: no value model).")
    ] = None,
    method: MethodOption = None,
    start: FromOption = None,
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
    """Learn from rewards for the task's own answers to prompts (PPO, or GRPO)."""
    session = begin(workspace, as_json, lang)
    given = [*(set_ or []), *([f"advantage={advantage}"] if advantage else [])]
    job = _job(
        task,
        prompts,
        method,
        start,
        instruction,
        held_out,
        template,
        columns,
        encoding,
        given,
        seed,
        skip_bad,
    )
    session.workspace.require_writable()
    loaded = _base(session, job, base, precision, reward=reward)
    with prints_to_stderr(), yield_to_server(session.workspace), run_display() as display:
        stored = train_ppo(
            job,
            reward,
            base=loaded,
            workspace=session.workspace,
            observer=display,
            restart=restart,
        )
    show_aligned(session, stored)


def _job(
    task: str,
    data: str,
    method: str | None,
    start: str | None,
    instruction: str | None,
    held_out: str | None,
    template: str,
    columns: list[str] | None,
    encoding: str | None,
    set_: list[str] | None,
    seed: int,
    skip_bad: bool,
) -> AlignJob:
    if method is not None and start is not None:
        raise UsageError(
            say("Both --method and --from were given.", "同时给出了 --method 和 --from。"),
            say(
                "Begin afresh by a method, or from an adapter.",
                "请选择用某方法重新开始，或从某个适配器开始。",
            ),
        )
    job = AlignJob(
        task=task,
        data=data,
        method=method,
        start=start,
        instruction=instruction,
        held_out=held_out,
        template=template,
        columns=columns_of(columns or []),
        encoding=encoding,
        skip_bad=skip_bad,
        seed=seed,
        set=settings(set_ or []),
    )
    check_job(job)
    return job


def _base(
    session: Session,
    job: AlignJob,
    base: str | None,
    precision: str | None,
    *,
    reward: str | None = None,
) -> Base:
    """The base that the job learns on: as its adapters were trained, unless chosen otherwise."""
    chosen = base_for_job(job, session.workspace, base=base, precision=precision, reward=reward)
    return load_base(chosen.name, chosen.precision)


def resume_align(session: Session, run: str, base: Base) -> None:
    """Go on with an interrupted run of this kind, for `onebase resume`."""
    with prints_to_stderr(), yield_to_server(session.workspace), run_display() as display:
        stored = resume_aligned(run, base=base, workspace=session.workspace, observer=display)
    show_aligned(session, stored)


def show_aligned(session: Session, stored: StoredAdapter) -> None:
    """What came of it."""
    metrics = stored.metrics
    option = session.workspace.option
    name = f"{stored.name} ({stored.method}): "
    if stored.record.get("head"):
        text = name + say(
            f"pair accuracy {metrics['pair_accuracy']:.3f} over {metrics['pairs']} held-out pairs, "
            f"calibration error {metrics['calibration_error']:.3f}, scores {metrics['score_mean']:.2f} "
            f"± {metrics['score_deviation']:.2f}",
            f"{metrics['pairs']} 个留出对的准确率 {metrics['pair_accuracy']:.3f}，校准误差 "
            f"{metrics['calibration_error']:.3f}，得分 {metrics['score_mean']:.2f} ± "
            f"{metrics['score_deviation']:.2f}",
        )
        command = "onebase align ppo --task T --method lora --prompts F"
        command += f" --reward {name_to_use(stored)}{option}"
        after = say(f"Try: {command}", f"试试：{command}")
    elif "reward_before" in metrics:
        text = name + say(
            f"held-out reward {metrics['reward_before']:.3f} -> {metrics['reward']:.3f}, KL "
            f"{metrics['kl']:.2f}, distinct-2 {metrics['distinct_2_before']:.2f} -> "
            f"{metrics['distinct_2']:.2f} (step {metrics['best_step']} of {metrics['steps']})",
            f"留出奖励 {metrics['reward_before']:.3f} -> {metrics['reward']:.3f}，KL "
            f"{metrics['kl']:.2f}，distinct-2 {metrics['distinct_2_before']:.2f} -> "
            f"{metrics['distinct_2']:.2f}（第 {metrics['best_step']} 步，共 {metrics['steps']} 步）",
        )
        after = say(
            f"Its curves and samples: onebase runs show {stored.record['run']}{option}",
            f"曲线与样例：onebase runs show {stored.record['run']}{option}",
        )
    else:
        before, loss = metrics["base_eval_loss"], metrics["eval_loss"]
        text = name + say(
            f"held-out loss {before:.3f} -> {loss:.3f}", f"留出损失 {before:.3f} -> {loss:.3f}"
        )
        after = ask_it(session, stored)
    session.show({"run": stored.record["run"], "adapters": [summary(stored)]}, text, after)
