"""`onebase demo`: trains five tasks together and compares answers before and after."""

from typing import Annotated

import typer

from onebase.cli.options import BaseOption, SessionFlags
from onebase.cli.session import begin, note
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE


def demo_command(
    data: Annotated[str, typer.Option(help="The language of the demo's data: en or zh.")] = "en",
    base: BaseOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="Train again, even if the demo was already trained.")
    ] = False,
    *,
    flags: SessionFlags,
) -> None:
    """Train five tasks together on one base and compare answers before and after."""
    from onebase.cli.demo_report import (
        answers_before_and_after,
        demo_folder,
        finished_demo,
        show_demo,
    )
    from onebase.cli.training import load_base, run_training
    from onebase.training.job import read_jobs

    session = begin(flags)
    tasks = read_jobs(demo_folder(data) / "tasks.yaml")
    jobs, chosen = tasks.jobs, base or tasks.base or DEFAULT_BASE
    if data == "zh" and chosen == DEFAULT_BASE:
        note(
            say(
                f"{DEFAULT_BASE} knows little Chinese, so the answers will be poor. Choose a base that knows "
                "Chinese, for example with --base gemma3-270m.",
                f"{DEFAULT_BASE} 几乎不懂中文，回答会很差。请换用懂中文的基座，例如 --base gemma3-270m。",
            )
        )
    stored = [] if again else finished_demo(session, jobs, chosen)
    session.workspace.require_writable()
    loaded = load_base(chosen, tasks.precision)
    if stored:
        note(
            say(
                "Already trained. Use --again to train again.",
                "已经训练过。要重新训练，请使用 --again。",
            )
        )
    else:
        stored = run_training(session, jobs, loaded)
    note(say("Answering the same prompts before and after …", "用同样的提示对比训练前后的回答 …"))
    before, after = answers_before_and_after(loaded, jobs, stored)
    show_demo(session, stored, before, after)
