"""`onebase compare`: every method on the user's own rows, measured side by side."""

from pathlib import Path
from typing import Annotated

import typer

from onebase.cli.options import BaseFlags, DataOption, LearningFlags, SessionFlags, TaskOption
from onebase.cli.session import begin
from onebase.model.fetch import DEFAULT_BASE


def compare_command(
    task: TaskOption = None,
    data: DataOption = None,
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="The config.yaml of an earlier comparison."),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Methods separated by commas; all: every method.")
    ] = "all",
    seeds: Annotated[int, typer.Option(help="How often each method is trained.")] = 3,
    share: Annotated[
        float, typer.Option(help="Share of the inputs to score on, without --held-out.")
    ] = 0.3,
    metric: Annotated[
        str | None,
        typer.Option(help="The metric that decides: accuracy, loss, rouge_l, bleu_4, chrf …"),
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="Your own metric, module:function, one number a row.")
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="Examples in the prompt of the row base+examples.")
    ] = None,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", help="Tokens of an answer at most.")
    ] = 64,
    tune: Annotated[
        str | None,
        typer.Option(help="Choose each method's settings by a race of so many tokens: 100k."),
    ] = None,
    alone: Annotated[
        bool,
        typer.Option(
            "--alone/--no-alone",
            help="Train the first seed of each method in a process of its own, to measure its "
            "memory and time.",
        ),
    ] = True,
    *,
    base: BaseFlags,
    learning: LearningFlags,
    flags: SessionFlags,
) -> None:
    """Compare methods on one task: train each with several seeds, score all on the same held-out rows.

    The report has intervals, paired tests, costs and plots. The same command continues a comparison
    that was interrupted.
    """
    from onebase.cli.compare_report import (
        compared_job,
        run_comparison,
        show_comparison,
        tokens_of,
    )
    from onebase.cli.training import load_base
    from onebase.compare.options import CompareOptions, methods_named

    session = begin(flags)
    if config is not None:
        from onebase.compare.compare import read_config

        job, options, base_name, held_in = read_config(config)
        precision: str | None = held_in
    else:
        job = compared_job(task, data, learning)
        options = CompareOptions(
            methods=methods_named(methods.split(",")),
            seeds=seeds,
            share=share,
            examples=examples,
            metric=metric,
            user_metric=score,
            answer_tokens=answer_tokens,
            alone=alone,
            tune=None if tune is None else tokens_of(tune),
        )
        base_name = base.base or DEFAULT_BASE
        precision = base.precision
    session.workspace.require_writable()
    loaded = load_base(base_name, precision)
    show_comparison(session, run_comparison(session, job, options, loaded))
