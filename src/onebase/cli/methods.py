"""`onebase methods`: what each method learns, its options, and its limits."""

from typing import Annotated

import typer

from onebase.cli.options import SessionFlags
from onebase.cli.session import begin


def methods_command(
    name: Annotated[
        str | None,
        typer.Argument(help="A method, or several joined with +; all methods by default."),
    ] = None,
    *,
    flags: SessionFlags,
) -> None:
    """List the methods, or describe one with its options, defaults and allowed values."""
    # Late: the methods import torch.
    from onebase.cli.method_report import method_lines, method_result, overview, overview_lines

    session = begin(flags)
    if name is None:
        session.show(overview(), *overview_lines())
    else:
        session.show(method_result(name), *method_lines(name, session.workspace))
