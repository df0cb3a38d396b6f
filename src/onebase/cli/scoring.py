"""`onebase align score`: scores of answers by a reward model."""

from pathlib import Path
from typing import Annotated

import typer

from onebase.align.base_choice import base_for_scores
from onebase.align.scoring import score_answers
from onebase.cli.request_file import read_answers
from onebase.cli.session import (
    BaseOption,
    EncodingOption,
    JsonOption,
    LangOption,
    PrecisionOption,
    WorkspaceOption,
    begin,
    note,
)
from onebase.cli.training import load_base
from onebase.engine.prompt import require_text
from onebase.errors import UsageError
from onebase.language import say


def score_command(
    task: Annotated[str, typer.Option("--task", help="The reward model's task.")],
    file: Annotated[
        Path | None, typer.Option("--file", help="Rows with text, or input and output.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What was asked.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="The answer to score.")] = None,
    encoding: EncodingOption = None,
    base: BaseOption = None,
    precision: PrecisionOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Score answers by a reward model: 0 is its mean, 1 a deviation above."""
    session = begin(workspace, as_json, lang)
    asked = _answers(file, prompt, answer, encoding)
    chosen = base_for_scores(task, session.workspace, base=base, precision=precision)
    loaded = load_base(chosen.name, chosen.precision)
    scores = score_answers(task, asked, base=loaded, workspace=session.workspace, noted=note)
    rows = [
        {"prompt": question, "answer": said, "score": score}
        for (question, said), score in zip(asked, scores, strict=True)
    ]
    session.show({"scores": rows}, *(f"{row['score']:+.3f}  {row['answer']}" for row in rows))


def _answers(
    file: Path | None, prompt: str | None, answer: str | None, encoding: str | None
) -> list[tuple[str, str]]:
    if (file is None) == (answer is None):
        raise UsageError(
            say("There is nothing to score.", "没有要打分的内容。"),
            say(
                "Give --answer (with --prompt), or --file.",
                "请给出 --answer（配合 --prompt），或 --file。",
            ),
        )
    if file is None:
        for text in (prompt, answer):
            if text:
                require_text(text)
        return [(prompt or "", answer or "")]
    return read_answers(file, encoding=encoding)
