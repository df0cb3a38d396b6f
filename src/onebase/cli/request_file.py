"""Requests and answers to score, from the flags or from files that the data readers read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from onebase.cli.session import note
from onebase.data import rows as data_rows
from onebase.data.cells import InvalidValue, is_empty, text_of
from onebase.data.conversion import require_supported
from onebase.data.example import Field
from onebase.data.fields import UNREAD, fields_of, unread
from onebase.data.formats import Format
from onebase.data.question import BEFORE, BENEATH, question_of, with_history
from onebase.data.row import Row
from onebase.data.turns import chat_of
from onebase.engine.pool import BASE_TASK
from onebase.engine.prompt import Prompt, require_text
from onebase.errors import DataError, UsageError
from onebase.language import say

_TASK = {"task": ("task",)}
_REQUESTS = (
    Format("chat", {"messages": ("messages",)}, beside={**_TASK, **BEFORE}),
    Format("request", {"input": ("input", "prompt")}, beside={**_TASK, **BEFORE, **BENEATH}),
)
_ANSWERS = (
    Format(
        "answer",
        {"input": ("input", "prompt"), "output": ("output", "completion", "text")},
        optional=frozenset({"input"}),
    ),
)


def requests_of(
    prompt: str | None, file: Path | None, task: str | None, *, encoding: str | None
) -> list[tuple[str, Prompt]]:
    """The requests of a file, or the one prompt of the flags. Raises UsageError and DataError."""
    if prompt is not None:
        require_text(prompt)
    if file is None:
        return [(task or BASE_TASK, str(prompt))]
    return read_requests(file, task, encoding=encoding)


def read_requests(
    file: Path, task: str | None, *, encoding: str | None = None
) -> list[tuple[str, Prompt]]:
    """The task and the prompt of every row; `task` is the default for rows that name none.

    The user is told which fields are not read. Raises DataError naming the line.
    """
    remedy = say(
        'Write rows like {"task": "support", "input": "…"}.',
        '请写入 {"task": "support", "input": "…"} 这样的行。',
    )
    requests = []
    for row, columns in _matched(file, encoding, _REQUESTS, "input", remedy):
        try:
            requests.append((_task(row, task), _prompt(row, columns)))
        except InvalidValue as invalid:
            raise _bad_row(row, invalid, remedy) from invalid
    return requests


def answers_to_score(
    file: Path | None, prompt: str | None, answer: str | None, *, encoding: str | None
) -> list[tuple[str, str]]:
    """The questions and answers of a file, or the one pair of the flags. Raises UsageError."""
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


def read_answers(file: Path, *, encoding: str | None = None) -> list[tuple[str, str]]:
    """The question, which may be empty, and the answer of every row. Raises DataError as above."""
    remedy = say(
        'Write rows like {"text": "…"} or {"input": "…", "output": "…"}.',
        '请写成 {"text": "…"} 或 {"input": "…", "output": "…"} 这样的行。',
    )
    pairs = []
    for row, columns in _matched(file, encoding, _ANSWERS, "output", remedy):
        input_column = columns.get("input", "")
        try:
            require_supported(row.values)
            question = (
                "" if is_empty(row.values.get(input_column)) else text_of(row.values, input_column)
            )
            pairs.append((question, text_of(row.values, columns["output"])))
        except InvalidValue as invalid:
            raise _bad_row(row, invalid, remedy) from invalid
    return pairs


def _matched(
    file: Path, encoding: str | None, formats: Sequence[Format], needed: str, remedy: str
) -> list[tuple[Row, dict[str, str]]]:
    """The rows of a file, each with the column of every role."""
    matched = []
    unused: dict[str, Field] = {}
    for row in data_rows.read_requests(file, encoding=encoding).rows:
        columns = next(
            (match for form in formats if (match := form.match(row.values, {})) is not None), None
        )
        if columns is None:
            raise _bad_row(row, InvalidValue(needed, say("missing", "缺失")), remedy)
        matched.append((row, columns))
        unused |= {field.name: field for field in fields_of([row], columns) if field.use == UNREAD}
    for warning in unread(list(unused.values())):
        note(warning)
    return matched


def _task(row: Row, task: str | None) -> str:
    if is_empty(row.values.get("task")):
        return task or BASE_TASK
    return text_of(row.values, "task")


def _prompt(row: Row, columns: Mapping[str, str]) -> Prompt:
    values = row.values
    require_supported(values)
    if "messages" in columns:
        return with_history(values, columns, chat_of(values, columns["messages"], last="user"))
    turns = with_history(values, columns, question_of(values, columns))
    return turns if len(turns) > 1 else turns[0].content


def _bad_row(row: Row, invalid: InvalidValue, remedy: str) -> DataError:
    return DataError(
        say(
            f"{row.file}:{row.line}, {invalid.column!r}: {invalid.reason}.",
            f"{row.file}:{row.line}，{invalid.column!r}：{invalid.reason}。",
        ),
        remedy,
    )
