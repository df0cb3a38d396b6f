"""Which format a file has, told by its columns, and the file read as a `Dataset` of examples."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onebase.data.conversion import convert
from onebase.data.example import BadRow, Dataset, Example
from onebase.data.row import Row
from onebase.data.rows import read_rows
from onebase.errors import DataError, UsageError, unknown
from onebase.language import say

_NAMED_BAD_ROWS = 5


@dataclass(frozen=True)
class Format:
    """Roles and, for each, the column names that stand for it, the first found winning.

    A role in `optional` may lack its column.
    """

    name: str
    roles: Mapping[str, tuple[str, ...]]
    optional: frozenset[str] = frozenset()

    def match(self, columns: Collection[str], given: Mapping[str, str]) -> dict[str, str] | None:
        """Role to column, `given` roles first; None where a role has no column."""
        found: dict[str, str] = {}
        for role, names in self.roles.items():
            column = given.get(role) or next((name for name in names if name in columns), None)
            if column is not None:
                found[role] = column
            elif role not in self.optional:
                return None
        return found

    def __str__(self) -> str:
        return ",".join("|".join(names) for names in self.roles.values())


# In the order of detection. A preference set's `conversations` end with the question, so its
# three columns are asked for before ShareGPT's one.
FORMATS = (
    Format("adgen", {"input": ("content",), "output": ("summary",)}),
    Format("messages", {"messages": ("messages",)}),
    Format(
        "preference-conversations",
        {"conversations": ("conversations",), "chosen": ("chosen",), "rejected": ("rejected",)},
    ),
    Format("sharegpt", {"conversations": ("conversations",)}),
    Format(
        "alpaca",
        {"instruction": ("instruction",), "input": ("input",), "output": ("output",)},
        optional=frozenset({"input"}),
    ),
    Format("prompt-completion", {"input": ("prompt",), "output": ("completion",)}),
    Format(
        "preference-prompt",
        {"input": ("prompt",), "chosen": ("chosen",), "rejected": ("rejected",)},
    ),
    Format("input-output", {"input": ("input",), "output": ("output",)}),
    Format("classification", {"input": ("text",), "label": ("label", "category", "intent")}),
    Format("question-answer", {"input": ("question",), "output": ("answer",)}),
)
UNKNOWN_FORMAT = "unknown"  # of a file with no row that can be read
_ALIASES = {
    "content": "input",
    "prompt": "input",
    "text": "input",
    "question": "input",
    "summary": "output",
    "completion": "output",
    "answer": "output",
    "category": "label",
    "intent": "label",
}


def load_dataset(path: str | Path, *, columns: Mapping[str, str] | None = None) -> Dataset:
    """Read every row of a file (or Hub data set); what is wrong with a row stands in `.bad`.

    `columns` names the file's column for a role (`{"input": "mr", "output": "ref"}`), over what
    detection would find. Raises `UsageError` for a role or column that does not exist, and
    `DataError` for a file that can't be read, has no known format or holds preference pairs.
    """
    table = read_rows(path)
    form, found = _format(path, table.rows, _roles(columns or {}))
    good: list[Example] = []
    bad: list[BadRow] = list(table.bad)
    for row in table.rows:
        result = convert(row, found)
        if isinstance(result, BadRow):
            bad.append(result)
        else:
            good.append(result)
    labels = sorted({example.answer for example in good}) if "label" in found else []
    return Dataset(
        path=str(path),
        format=form,
        columns=found,
        examples=tuple(good),
        bad=tuple(sorted(bad, key=lambda row: (row.file, row.line))),
        labels=tuple(labels),
        sha256=table.sha256,
    )


def require_good(dataset: Dataset, *, skip_bad: bool = False) -> None:
    """Raise `DataError` unless the data set can be trained on.

    It can't while it holds bad rows, unless `skip_bad`, and never without a good one.
    """
    path, count = dataset.path, len(dataset.bad)
    shown = "; ".join(str(row) for row in dataset.bad[:_NAMED_BAD_ROWS])
    more = count - _NAMED_BAD_ROWS
    if more > 0:
        shown += say(f"; and {more} more", f"；另有 {more} 行")
    if not dataset.examples:
        raise DataError(
            say(
                f"{path} has no row to learn from. Bad rows: {count}: {shown}.",
                f"{path} 中没有可供学习的数据行。坏行 {count} 行：{shown}。",
            ),
            say(
                f"See `onebase data check {path}`, mend the rows or name the columns with "
                "`--columns`.",
                f"请运行 `onebase data check {path}`，修正数据行，或用 `--columns` 指定列。",
            ),
        )
    if count and not skip_bad:
        raise DataError(
            say(
                f"{path} has bad rows: {count}: {shown}.", f"{path} 有 {count} 行坏数据：{shown}。"
            ),
            say(
                f"See them all with `onebase data check {path}` and mend them, or train on the "
                "others with `--skip-bad`.",
                f"请用 `onebase data check {path}` 查看全部并修正，或用 `--skip-bad` 跳过它们。",
            ),
        )


def _roles(columns: Mapping[str, str]) -> dict[str, str]:
    """What `--columns` gives, by role."""
    valid = {role for form in FORMATS for role in form.roles}
    given: dict[str, str] = {}
    for name, column in columns.items():
        role = _ALIASES.get(name, name)
        if role not in valid:
            raise unknown("column role", "列角色", name, valid)
        if role in given or column in given.values():
            raise UsageError(
                say(
                    f"--columns names the role {role!r} or the column {column!r} twice.",
                    f"--columns 中角色 {role!r} 或列 {column!r} 出现了两次。",
                ),
                say("Give each role one column of its own.", "请为每个角色指定各自的一列。"),
            )
        given[role] = column
    return given


def _format(
    path: str | Path, rows: Sequence[Row], given: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    counts = Counter(column for row in rows for column in row.values)
    if not counts:
        return UNKNOWN_FORMAT, dict(given)
    for column in given.values():
        if column not in counts:
            raise unknown("column", "列", column, counts)
    usual = {column for column, count in counts.items() if 2 * count >= len(rows)}
    match = _detect(usual, given) or _detect(counts, given)
    if match is None:
        raise _no_format(path, list(counts), given)
    form, found = match
    if "chosen" in found:
        raise _is_preference(path, found)
    return form.name, found


def _is_preference(path: str | Path, found: Mapping[str, str]) -> DataError:
    remedy = say(
        "They are for `onebase align reward` and `onebase align dpo`.",
        "偏好数据用于 `onebase align reward` 与 `onebase align dpo`。",
    )
    if "input" in found:
        names = f"input={found['input']},output={found['chosen']}"
        remedy += say(
            f" To learn the chosen answers: `--columns {names}`.",
            f"若要学习被选中的回答：`--columns {names}`。",
        )
    return DataError(
        say(
            f"{path} holds preference pairs (chosen, rejected), not answers to learn.",
            f"{path} 是偏好数据（chosen、rejected），不是可供学习的回答。",
        ),
        remedy,
    )


def _detect(
    columns: Collection[str], given: Mapping[str, str]
) -> tuple[Format, dict[str, str]] | None:
    def rank(form: Format) -> tuple[bool, bool]:
        """First the format of just the given roles, by its general name; else in order."""
        exact = set(form.roles) == set(given)
        return not exact, exact and form.name != "input-output"

    forms = [form for form in FORMATS if set(given) <= set(form.roles)]
    for form in sorted(forms, key=rank):
        found = form.match(columns, given)
        if found is not None:
            return form, found
    return None


def _no_format(path: str | Path, columns: list[str], given: Mapping[str, str]) -> Exception:
    known = "; ".join(str(form) for form in FORMATS if "chosen" not in form.roles)
    if given:
        roles = ", ".join(given)
        return UsageError(
            say(
                f"No format has the roles {roles} with the columns {', '.join(columns)}.",
                f"没有格式同时符合角色 {roles} 与列 {', '.join(columns)}。",
            ),
            say(
                "Give input and output, input and label, messages, or conversations.",
                "请指定 input 与 output、input 与 label、messages 或 conversations。",
            ),
        )
    first, second = columns if len(columns) == 2 else ("A", "B")
    return DataError(
        say(
            f"{path} has the columns {', '.join(columns)}, which are no known format.",
            f"{path} 的列为 {', '.join(columns)}，不属于已知格式。",
        ),
        say(
            f"Name them: `--columns input={first},output={second}`; or use one of: {known}.",
            f"请指定列：`--columns input={first},output={second}`；或使用以下格式之一：{known}。",
        ),
    )
