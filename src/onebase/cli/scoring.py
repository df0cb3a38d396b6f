"""`onebase align score`: scores of answers by a reward model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from onebase.align.scoring import score_answers
from onebase.cli.session import (
    BaseOption,
    JsonOption,
    LangOption,
    PrecisionOption,
    WorkspaceOption,
    begin,
)
from onebase.cli.training import load_base
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE


def score_command(
    task: Annotated[str, typer.Option("--task", help="The reward model's task.")],
    file: Annotated[
        Path | None, typer.Option("--file", help="Rows with text, or input and output.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What was asked.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="The answer to score.")] = None,
    base: BaseOption = None,
    precision: PrecisionOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    lang: LangOption = None,
) -> None:
    """Score answers by a reward model: 0 is its mean, 1 a deviation above."""
    session = begin(workspace, as_json, lang)
    asked = _answers(file, prompt, answer)
    loaded = load_base(base or DEFAULT_BASE, precision)
    scores = score_answers(task, asked, base=loaded, workspace=session.workspace)
    rows = [
        {"prompt": question, "answer": said, "score": score}
        for (question, said), score in zip(asked, scores, strict=True)
    ]
    session.show({"scores": rows}, *(f"{row['score']:+.3f}  {row['answer']}" for row in rows))


def _answers(file: Path | None, prompt: str | None, answer: str | None) -> list[tuple[str, str]]:
    if (file is None) == (answer is None):
        raise UsageError(
            say("There is nothing to score.", "没有要打分的内容。"),
            say(
                "Give --answer (with --prompt), or --file.",
                "请给出 --answer（配合 --prompt），或 --file。",
            ),
        )
    if file is None:
        return [(prompt or "", answer or "")]
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            say(f"{file} can't be read: {error}.", f"无法读取 {file}：{error}。"),
            say("Check the path.", "请检查路径。"),
        ) from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            row = ()
        if row is None:
            continue
        said = row.get("output", row.get("text")) if isinstance(row, dict) else None
        if not isinstance(said, str) or not said.strip():
            raise UsageError(
                say(
                    f"{file}, line {number}, has no text or output.",
                    f"{file} 第 {number} 行没有 text 或 output。",
                ),
                say(
                    'Write JSON lines: {"text": …} or {"input": …, "output": …}.',
                    '请写成 JSON 行：{"text": …} 或 {"input": …, "output": …}。',
                ),
            )
        found.append((str(row.get("input") or ""), said))
    return found
