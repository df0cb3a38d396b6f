"""`onebase data`: checks of data files."""

from typing import Annotated, Literal

import typer

from onebase.cli.options import (
    BaseOption,
    ColumnsOption,
    EncodingOption,
    HeldOutOption,
    InstructionOption,
    SessionFlags,
    TemplateOption,
)
from onebase.cli.session import begin

data_app = typer.Typer(help="Data files.")

Content = Literal["auto", "answers", "preferences"]


@data_app.command("check")
def check_command(
    file: Annotated[str, typer.Argument(help="The data file.")],
    held_out: HeldOutOption = None,
    columns: ColumnsOption = None,
    encoding: EncodingOption = None,
    content: Annotated[
        Content,
        typer.Option(
            "--as",
            help="auto, answers (to learn), or preferences (pairs, ratings, labelled answers).",
        ),
    ] = "auto",
    base: BaseOption = None,
    instruction: InstructionOption = None,
    template: TemplateOption = "auto",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Longer rows are truncated.")
    ] = 512,
    *,
    flags: SessionFlags,
) -> None:
    """Report a file's format, first example, bad rows, duplicates, overlap and token counts."""
    # Late: it imports torch.
    from onebase.cli.data_report import check_file, next_step, report_lines

    session = begin(flags)
    data, report = check_file(
        file,
        held_out,
        columns=columns,
        encoding=encoding,
        content=content,
        base=base,
        instruction=instruction,
        template=template,
        max_tokens=max_tokens,
    )
    result = report.to_dict()
    session.show(result, *report_lines(result), next_step(data, report, session.workspace))
    if report.bad:
        raise typer.Exit(3)
