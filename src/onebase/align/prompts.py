"""The prompts of PPO: the questions of a data file, each with its whole row."""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onebase.align.rewards import Prompt
from onebase.data.bad_rows import bad_rows_error, in_order
from onebase.data.cells import InvalidValue
from onebase.data.columns import require_columns, roles_of
from onebase.data.conversion import require_supported
from onebase.data.example import BadRow, Field, Turn
from onebase.data.fields import fields_of
from onebase.data.formats import Format
from onebase.data.question import BEFORE, BENEATH, question_of, with_history
from onebase.data.refused_rows import refused
from onebase.data.row import Row
from onebase.data.rows import read_rows, require_readable
from onebase.data.split import held_out_keys
from onebase.data.template import Template
from onebase.data.turns import is_answer
from onebase.errors import DataError, UsageError
from onebase.language import say
from onebase.model.base import Base

# In the order of detection.
FORMATS = (
    Format("chat", {"messages": ("messages", "conversations")}, beside=BEFORE),
    Format(
        "prompt",
        {"input": ("prompt", "content", "instruction", "question", "input", "text")},
        beside={**BEFORE, **BENEATH},
    ),
)


@dataclass(frozen=True)
class PromptSet:
    """A file's distinct prompts, its bad rows, the number of rows that `repeated` a prompt, the use of its
    columns, and the SHA-256 of its bytes.
    """

    path: str
    prompts: tuple[Prompt, ...]
    bad: tuple[BadRow, ...]
    repeated: int
    fields: tuple[Field, ...]
    sha256: str

    def split(self, fraction: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
        """Prompts to train on, and those held out: at least one, and never all."""
        held_out = held_out_keys(range(len(self.prompts)), fraction, seed)
        return (
            [prompt for at, prompt in enumerate(self.prompts) if at not in held_out],
            [prompt for at, prompt in enumerate(self.prompts) if at in held_out],
        )


def load_prompts(
    path: str | Path,
    template: Template,
    *,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    skip_bad: bool = False,
) -> PromptSet:
    """The prompts of a file, rendered by `template`. `columns` names the file's column for a role
    (`input`, `system`, `history`, `context`).

    Raises DataError for a file without two good prompts, or with bad rows unless `skip_bad`;
    UsageError for an unknown column.
    """
    table = read_rows(path, encoding=encoding)
    require_readable(path, table)
    names = list(dict.fromkeys(name for row in table.rows for name in row.values))
    roles = _columns(path, names, columns or {})
    prompts: dict[tuple[Turn, ...], Prompt] = {}
    bad, repeated = list(table.bad), 0
    for row in table.rows:
        try:
            turns = _turns(row, roles)
            ids = tuple(template.prompt(turns))
        except InvalidValue as invalid:
            bad.append(BadRow(row.file, row.line, invalid.column, invalid.reason))
        except UsageError as refusal:
            bad.append(refused(row.file, row.line, refusal))
        else:
            prompt = Prompt(turns, ids, row.values, row.file, row.line)
            repeated += prompts.setdefault(turns, prompt) is not prompt
    if bad and not (skip_bad and prompts):
        remedy = (
            say(
                "Correct them, or leave them out with --skip-bad.", "请修正，或用 --skip-bad 跳过。"
            )
            if prompts
            else say("No row is good: correct them.", "没有一行可用：请修正这些行。")
        )
        raise bad_rows_error(path, in_order(bad), remedy)
    if len(prompts) < 2:
        raise DataError(
            say(
                f"{path} has {len(prompts)} different prompts.",
                f"{path} 只有 {len(prompts)} 个不同的提示。",
            ),
            say("Add more: some are held out for evaluation.", "请增加提示：其中一部分用于评估。"),
        )
    fields = fields_of(table.rows, roles)
    return PromptSet(
        str(path), tuple(prompts.values()), in_order(bad), repeated, fields, table.sha256
    )


def digest_of(prompts: Sequence[Prompt]) -> str:
    """A hash of prompts as the model sees them, SHA-256."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(array("q", (len(prompt.ids), *prompt.ids)).tobytes())
    return digest.hexdigest()


def repeated_prompt_notes(prompts: PromptSet) -> list[str]:
    """A note where rows repeat a prompt, as their other columns may differ."""
    count = prompts.repeated
    if not count:
        return []
    return [
        say(
            f"{count} {'row repeats' if count == 1 else 'rows repeat'} the prompt of an "
            "earlier row: each prompt is used once, with the columns of its first row.",
            f"有 {count} 行重复了前面的提示：每个提示只提问一次，使用首次出现的那一行的各列。",
        )
    ]


def require_room(base: Base, prompts: Sequence[Prompt], before: int, tokens: int) -> None:
    """Raise DataError for a prompt that, after `before` virtual tokens, leaves no room for an answer of
    `tokens` tokens.
    """
    if base.context is None:
        return
    for prompt in prompts:
        if before + len(prompt.ids) + tokens > base.context:
            virtual = f" and {before} virtual tokens before it" if before else ""
            raise DataError(
                say(
                    f"{prompt.file}:{prompt.line} has {len(prompt.ids)} tokens{virtual}: "
                    f"{base.context_text} has no room for {tokens} more.",
                    f"{prompt.file}:{prompt.line} 有 {len(prompt.ids)} 个词元"
                    + (f"，之前另有 {before} 个虚拟词元" if before else "")
                    + f"：{base.context_text}，放不下另外 {tokens} 个。",
                ),
                say("Shorten the prompt, or lower max_tokens.", "请缩短提示，或减小 max_tokens。"),
            )


def _columns(path: str | Path, names: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    given = roles_of(columns, {role for form in FORMATS for role in form.all_roles})
    require_columns(given, names)
    for form in FORMATS:
        columns_of_form = form.match(names, given) if set(given) <= form.all_roles else None
        if columns_of_form is not None:
            return columns_of_form
    raise DataError(
        say(
            f"{path} has the columns {', '.join(names)}: none holds prompts.",
            f"{path} 的列为 {', '.join(names)}：没有提示列。",
        ),
        say("Name it: --columns input=COLUMN.", "请指定：--columns input=列名。"),
    )


def _turns(row: Row, columns: Mapping[str, str]) -> tuple[Turn, ...]:
    """The turns of a row up to the last one of the user, without the answer that ends an example."""
    values = row.values
    require_supported(values)
    column = columns["messages" if "messages" in columns else "input"]
    items = values.get(column)
    if isinstance(items, list) and items and is_answer(items[-1:]):
        values = {**values, column: items[:-1]}
    return with_history(values, columns, question_of(values, {**columns, "input": column}))
