"""`onebase compare`: every method on the user's own rows, measured side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from onebase.cli.options import BaseFlags, DataOption, LearningFlags, SessionFlags, TaskOption
from onebase.cli.session import begin


@dataclass(frozen=True)
class CompareFlags:
    """What is compared, how often, and by which metric."""

    methods: Annotated[
        str, typer.Option("--methods", help="Methods separated by commas; all: every method.")
    ] = "all"
    seeds: Annotated[int, typer.Option("--seeds", help="How often each method is trained.")] = 3
    share: Annotated[
        float,
        typer.Option("--share", help="Share of the inputs to score on, without --held-out."),
    ] = 0.3
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", help="The metric that decides: accuracy, loss, rouge_l, bleu_4, chrf …"
        ),
    ] = None
    score: Annotated[
        str | None,
        typer.Option("--score", help="Your own metric, module:function, one number a row."),
    ] = None
    examples: Annotated[
        int | None,
        typer.Option("--examples", help="Examples in the prompt of the row base+examples."),
    ] = None
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", help="Tokens of an answer at most.")
    ] = 64
    tune: Annotated[
        str | None,
        typer.Option(
            "--tune", help="Choose each method's settings by a race of so many tokens: 100k."
        ),
    ] = None
    alone: Annotated[
        bool,
        typer.Option(
            "--alone/--no-alone",
            help="Train the first seed of each method in a process of its own, to measure its "
            "memory and time.",
        ),
    ] = True


def compare_command(
    task: TaskOption = None,
    data: DataOption = None,
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="The config.yaml of an earlier comparison."),
    ] = None,
    *,
    compared: CompareFlags,
    base: BaseFlags,
    learning: LearningFlags,
    flags: SessionFlags,
) -> None:
    """Compare methods on one task: train each with several seeds, score all on the same held-out rows.

    The report has intervals, paired tests, costs and plots. The same command continues a comparison
    that was interrupted.
    """
    from onebase.cli.compare_report import asked_by_flags, run_comparison, show_comparison
    from onebase.cli.training import load_base
    from onebase.compare.compare import read_config

    session = begin(flags)
    asked = asked_by_flags(task, data, config, compared, base, learning)
    if asked is None:
        assert config is not None
        asked = read_config(config)
    job, options, name, precision = asked
    session.workspace.require_writable()
    loaded = load_base(name, precision)
    show_comparison(session, run_comparison(session, job, options, loaded))
