"""`onebase align`: reward models, PPO, DPO, KTO, and scoring answers.

Modules that import torch are imported in the commands, so that shell completion and `--help` stay fast.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from onebase.cli.options import (
    AlignFlags,
    BaseFlags,
    EncodingOption,
    LearningFlags,
    RestartOption,
    SessionFlags,
    StartFlags,
    StartMethodOption,
)
from onebase.cli.session import begin, note

align_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Learn from preferences and rewards: reward models, PPO, DPO, KTO.",
)


@align_app.command("score")
def score_command(
    task: Annotated[str, typer.Option("--task", help="The reward model's task.")],
    file: Annotated[
        Path | None, typer.Option("--file", help="Rows with text, or with input and output.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The prompt of the answer.")
    ] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="The answer to score.")] = None,
    encoding: EncodingOption = None,
    *,
    base: BaseFlags,
    flags: SessionFlags,
) -> None:
    """Score answers with a reward model. 0 is the mean score, 1 one standard deviation above it."""
    from onebase.align.base_choice import base_for_scores
    from onebase.align.scoring import score_answers
    from onebase.cli.request_file import answers_to_score
    from onebase.cli.training import load_base

    session = begin(flags)
    pairs = answers_to_score(file, prompt, answer, encoding=encoding)
    chosen = base_for_scores(task, session.workspace, base=base.base, precision=base.precision)
    loaded = load_base(chosen.name, chosen.precision)
    scores = score_answers(task, pairs, base=loaded, workspace=session.workspace, noted=note)
    rows = [
        {"prompt": prompt, "answer": answer, "score": score}
        for (prompt, answer), score in zip(pairs, scores, strict=True)
    ]
    session.show({"scores": rows}, *(f"{row['score']:+.3f}  {row['answer']}" for row in rows))


@align_app.command("reward")
def reward_command(
    *,
    target: AlignFlags,
    method: StartMethodOption = None,
    base: BaseFlags,
    learning: LearningFlags,
    restart: RestartOption = False,
    flags: SessionFlags,
) -> None:
    """Learn to score answers, from pairs (prompt, chosen, rejected) or ratings (text, rating)."""
    from onebase.align.reward_model import DEFAULT_METHOD, train_reward
    from onebase.cli.aligning import align, align_job

    session = begin(flags)
    job = align_job(target, StartFlags(method=method or DEFAULT_METHOD), learning)
    align(session, train_reward, job, base, restart=restart)


@align_app.command("dpo")
def dpo_command(
    *,
    target: AlignFlags,
    start: StartFlags,
    base: BaseFlags,
    learning: LearningFlags,
    restart: RestartOption = False,
    flags: SessionFlags,
) -> None:
    """Learn from pairs of answers (prompt, chosen, rejected), without a reward model."""
    from onebase.align.dpo import train_dpo
    from onebase.cli.aligning import align, align_job

    session = begin(flags)
    job = align_job(target, start, learning)
    align(session, train_dpo, job, base, restart=restart)


@align_app.command("kto")
def kto_command(
    *,
    target: AlignFlags,
    start: StartFlags,
    base: BaseFlags,
    learning: LearningFlags,
    restart: RestartOption = False,
    flags: SessionFlags,
) -> None:
    """Learn from single answers labelled good or bad (prompt, completion, label)."""
    from onebase.align.kto import train_kto
    from onebase.cli.aligning import align, align_job

    session = begin(flags)
    job = align_job(target, start, learning)
    align(session, train_kto, job, base, restart=restart)


@align_app.command("ppo")
def ppo_command(
    task: Annotated[str, typer.Option("--task", help="The task's name.")],
    prompts: Annotated[str, typer.Option("--prompts", help="A file of prompts.")],
    reward: Annotated[
        str, typer.Option("--reward", help="A reward model's task, or module:function.")
    ],
    advantage: Annotated[
        str | None, typer.Option("--advantage", help="gae, or group (GRPO: no value model).")
    ] = None,
    *,
    start: StartFlags,
    base: BaseFlags,
    learning: LearningFlags,
    restart: RestartOption = False,
    flags: SessionFlags,
) -> None:
    """Learn from rewards for the task's own answers to prompts (PPO, or GRPO)."""
    from onebase.align.ppo import train_ppo
    from onebase.cli.aligning import align, align_job

    session = begin(flags)
    if advantage:
        learning = replace(learning, set_=[*(learning.set_ or []), f"advantage={advantage}"])
    job = align_job(AlignFlags(task=task, data=prompts), start, learning)
    align(session, train_ppo, job, base, restart=restart, reward=reward)
