"""Requests and answers to score, from the flags or from files that the data readers read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

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

Item = TypeVar("Item")
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

    Prints a note on fields that are not read. Raises DataError with the line.
    """
    remedy = say(
        'Write rows like {"task": "support", "input": "…"}.',
        '请写入 {"task": "support", "input": "…"} 这样的行。',
    )

    def request(row: Row, columns: Mapping[str, str]) -> tuple[str, Prompt]:
        return _task(row, task), _prompt(row, columns)

    return _read(file, encoding, _REQUESTS, "input", remedy, request)


def answers_to_score(
    file: Path | None, prompt: str | None, answer: str | None, *, encoding: str | None
) -> list[tuple[str, str]]:
    """The questions and answers of a file, or the one pair of the flags. Raises UsageError."""
    if (file is None) == (answer is None):
        raise UsageError(
            say("Give either --answer or --file.", "请给出 --answer 或 --file 之一。"),
            say(
                "For example --prompt 'Where is my lamp?' --answer 'On its way.'",
                "例如 --prompt '我的灯在哪里？' --answer '正在路上。'",
            ),
        )
    if file is None:
        for text in (prompt, answer):
            if text:
                require_text(text)
        return [(prompt or "", answer or "")]
    return read_answers(file, encoding=encoding)


def read_answers(file: Path, *, encoding: str | None = None) -> list[tuple[str, str]]:
    """The question (it may be empty) and the answer of every row. Raises DataError with the line."""
    remedy = say(
        'Write rows like {"text": "…"} or {"input": "…", "output": "…"}.',
        '请写成 {"text": "…"} 或 {"input": "…", "output": "…"} 这样的行。',
    )
    return _read(file, encoding, _ANSWERS, "output", remedy, _question_and_answer)


def _read(
    file: Path,
    encoding: str | None,
    formats: Sequence[Format],
    required: str,
    remedy: str,
    convert: Callable[[Row, Mapping[str, str]], Item],
) -> list[Item]:
    """`convert(row, columns)` for every row of a file. `columns` has the row's column of each role."""
    items = []
    fields_not_read: dict[str, Field] = {}
    for row in data_rows.read_requests(file, encoding=encoding).rows:
        matches = (form.match(row.values, {}) for form in formats)
        columns = next((match for match in matches if match is not None), None)
        try:
            if columns is None:
                raise InvalidValue(required, say("missing", "缺失"))
            items.append(convert(row, columns))
        except InvalidValue as invalid:
            location, reason = f"{row.file}:{row.line}", invalid.reason
            raise DataError(
                say(
                    f"{location}, {invalid.column!r}: {reason}.",
                    f"{location}，{invalid.column!r}：{reason}。",
                ),
                remedy,
            ) from invalid
        fields_not_read |= {
            field.name: field for field in fields_of([row], columns) if field.use == UNREAD
        }
    for warning in unread(list(fields_not_read.values())):
        note(warning)
    return items


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


def _question_and_answer(row: Row, columns: Mapping[str, str]) -> tuple[str, str]:
    require_supported(row.values)
    column = columns.get("input", "")
    question = "" if is_empty(row.values.get(column)) else text_of(row.values, column)
    return question, text_of(row.values, columns["output"])
