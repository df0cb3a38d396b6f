"""The prompts that PPO rolls out from: the questions of a data file, each with its whole row."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onebase.align.rewards import Prompt
from onebase.data.conversion import CHAT_ROLES, SHAREGPT_ROLES, Unfit, chat_of, text_of
from onebase.data.example import BadRow, Turn
from onebase.data.row import Row
from onebase.data.rows import read_rows
from onebase.data.template import Template
from onebase.errors import DataError, unknown
from onebase.language import say
from onebase.model.base import Base

# Where a row's question stands, the first found winning.
COLUMNS = ("prompt", "content", "instruction", "input", "question", "text")
_CHATS = {
    "messages": ("role", "content", CHAT_ROLES),
    "conversations": ("from", "value", SHAREGPT_ROLES),
}


@dataclass(frozen=True)
class PromptSet:
    """A file's prompts, each once, and the SHA-256 of its bytes."""

    prompts: tuple[Prompt, ...]
    bad: tuple[BadRow, ...]
    sha256: str

    def split(self, fraction: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
        """What to learn from and what to judge by; at least one is held out, and never all."""
        order = list(range(len(self.prompts)))
        random.Random(seed).shuffle(order)
        count = min(max(round(fraction * len(order)), 1), len(order) - 1)
        held = set(order[:count])
        return (
            [prompt for at, prompt in enumerate(self.prompts) if at not in held],
            [prompt for at, prompt in enumerate(self.prompts) if at in held],
        )


def load_prompts(
    path: str | Path,
    template: Template,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> PromptSet:
    """The prompts of a file, as `template` writes them. `columns` names the file's `input` column.

    Raises DataError for a file without two good prompts, or with bad rows unless `skip_bad`;
    UsageError for an unknown column.
    """
    table = read_rows(path)
    names = list(dict.fromkeys(name for row in table.rows for name in row.values))
    column = _column(path, names, columns or {})
    found: dict[tuple[Turn, ...], Prompt] = {}
    bad = list(table.bad)
    for row in table.rows:
        try:
            asked = _asked(row, column)
        except Unfit as unfit:
            bad.append(BadRow(row.file, row.line, unfit.column, unfit.reason))
            continue
        ids = tuple(template.prompt(asked))
        found.setdefault(asked, Prompt(asked, ids, row.values, row.file, row.line))
    if bad and not skip_bad:
        shown = "; ".join(str(item) for item in bad[:5])
        raise DataError(
            say(
                f"{path} has bad rows: {len(bad)}: {shown}.",
                f"{path} 有 {len(bad)} 行坏数据：{shown}。",
            ),
            say("Mend them, or leave them out with --skip-bad.", "请修正，或用 --skip-bad 跳过。"),
        )
    if len(found) < 2:
        raise DataError(
            say(
                f"{path} has {len(found)} different prompts.",
                f"{path} 只有 {len(found)} 个不同的提示。",
            ),
            say("Add more: some are held out to judge by.", "请增加提示：其中一部分用于评估。"),
        )
    return PromptSet(tuple(found.values()), tuple(bad), table.sha256)


def require_room(base: Base, prompts: Sequence[Prompt], before: int, tokens: int) -> None:
    """Raise DataError where a prompt, behind so many virtual tokens `before` it, leaves no room for an
    answer of so many `tokens`.
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


def _column(path: str | Path, names: Sequence[str], given: Mapping[str, str]) -> str:
    for role, column in given.items():
        if role != "input":
            raise unknown("column role", "列角色", role, ["input"])
        if column not in names:
            raise unknown("column", "列", column, names)
        return column
    for column in (*_CHATS, *COLUMNS):
        if column in names:
            return column
    raise DataError(
        say(
            f"{path} has the columns {', '.join(names)}: none holds prompts.",
            f"{path} 的列为 {', '.join(names)}：没有提示列。",
        ),
        say("Name it: --columns input=COLUMN.", "请指定：--columns input=列名。"),
    )


def _asked(row: Row, column: str) -> tuple[Turn, ...]:
    if isinstance(row.values.get(column), list):
        role, content, roles = _CHATS.get(column, _CHATS["messages"])
        turns = list(row.values[column])  # type: ignore[call-overload]
        last = turns[-1].get(role) if turns and isinstance(turns[-1], dict) else None
        if roles.get(str(last)) == "assistant":  # the answer that a row of examples ends with
            turns.pop()
        return chat_of({column: turns}, column, role, content, roles, last="user")
    return (Turn("user", text_of(row.values, column)),)
