"""Detecting a file's format by its columns, and reading the file as a `Dataset` of examples."""

import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onebase.data.bad_rows import bad_rows_error, in_order, listed
from onebase.data.columns import columns_option, read_options, require_columns, roles_of
from onebase.data.conversion import convert
from onebase.data.example import BadRow, Dataset, Example
from onebase.data.fields import fields_of
from onebase.data.question import BEFORE, BENEATH
from onebase.data.ratings import rating_column
from onebase.data.row import Row
from onebase.data.rows import read_rows
from onebase.data.turns import MASKS, mask_of
from onebase.errors import DataError, UsageError
from onebase.language import say

# Columns that a row may have besides those of its format.
_BESIDE = {**BEFORE, "mask": MASKS}
_BESIDE_TEXT = {**_BESIDE, **BENEATH}


@dataclass(frozen=True)
class Format:
    """The roles of a format, each with its possible column names; the first one present is used.

    A role in `optional` may be without a column, and so may every role in `beside`.
    """

    name: str
    roles: Mapping[str, tuple[str, ...]]
    optional: frozenset[str] = frozenset()
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def required(self) -> set[str]:
        """The roles that must have a column."""
        return set(self.roles) - self.optional

    @property
    def all_roles(self) -> set[str]:
        """The roles that may have a column."""
        return {*self.roles, *self.beside}

    def match(
        self,
        columns: Collection[str],
        given: Mapping[str, str],
        present: Collection[str] | None = None,
    ) -> dict[str, str] | None:
        """Role to column, `given` roles first; None if a required role has no column. Optional roles
        are looked up in all the columns `present`.
        """
        column_of: dict[str, str] = {}
        for role, names in {**self.roles, **self.beside}.items():
            optional = role in self.optional or role in self.beside
            candidates = columns if present is None or not optional else present
            used = {*column_of.values(), *given.values()}
            free = (name for name in names if name in candidates and name not in used)
            column = given.get(role) or next(free, None)
            if column is not None:
                column_of[role] = column
            elif not optional:
                return None
        return column_of

    def __str__(self) -> str:
        return ",".join("|".join(names) for names in self.roles.values())


_PROMPT = {"prompt": ("prompt",)}
# In the order of detection. A preference set's `conversations` end with the question, so its
# three columns are tried before ShareGPT's single one.
FORMATS = (
    Format("adgen", {"input": ("content",), "output": ("summary",)}, beside=_BESIDE_TEXT),
    Format("messages", {"messages": ("messages",)}, beside={**_BESIDE, **_PROMPT}),
    Format(
        "preference-conversations",
        {"conversations": ("conversations",), "chosen": ("chosen",), "rejected": ("rejected",)},
    ),
    Format("sharegpt", {"conversations": ("conversations",)}, beside={**_BESIDE, **_PROMPT}),
    Format(
        "alpaca",
        {"instruction": ("instruction",), "input": ("input",), "output": ("output", "response")},
        optional=frozenset({"input"}),
        beside=_BESIDE_TEXT,
    ),
    Format(
        "prompt-completion", {"input": ("prompt",), "output": ("completion",)}, beside=_BESIDE_TEXT
    ),
    Format(
        "preference-prompt",
        {"input": ("prompt",), "chosen": ("chosen",), "rejected": ("rejected",)},
    ),
    Format("input-output", {"input": ("input",), "output": ("output",)}, beside=_BESIDE_TEXT),
    Format(
        "classification",
        {"input": ("text",), "label": ("label", "category", "intent")},
        beside=_BESIDE_TEXT,
    ),
    Format("question-answer", {"input": ("question",), "output": ("answer",)}, beside=_BESIDE_TEXT),
)
UNKNOWN_FORMAT = "unknown"  # of a file without a readable row


def load_dataset(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
) -> Dataset:
    """Read every row of a file (or Hub data set); rows that can't be used are in `.bad`.

    `columns` sets the file's column for a role (`{"input": "mr", "output": "ref"}`) and overrides
    detection. `encoding` is for text that is not UTF-8. Raises `UsageError` for a role, column or
    encoding that does not exist, and `DataError` for a file that can't be read, has no known format, or
    holds preferences: pairs of answers, or answers with a rating or a label.
    """
    table = read_rows(path, encoding=encoding)
    given = roles_of(columns or {}, {role for form in FORMATS for role in form.all_roles})
    format_name, column_of = _format(path, table.rows, given, encoding)
    good: list[Example] = []
    bad: list[BadRow] = list(table.bad)
    for row in table.rows:
        result = convert(row, column_of)
        if isinstance(result, BadRow):
            bad.append(result)
        else:
            good.append(result)
    labels = sorted({example.answer for example in good}) if "label" in column_of else []
    return Dataset(
        path=str(path),
        format=format_name,
        columns=column_of,
        fields=fields_of(table.rows, column_of),
        examples=tuple(good),
        bad=in_order(bad),
        labels=tuple(labels),
        sha256=table.sha256,
        options=read_options(given, encoding),
    )


def with_mask(
    rows: Sequence[Row], columns: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    """`columns` with the column that masks rows from the loss, if one has only the values 0 and 1."""
    column_of = {role: name for role, name in columns.items() if role != "mask" or role in given}
    if "mask" not in column_of:
        for name in MASKS:
            # A row without the column is in the loss.
            marks = [mask_of(row.values[name]) for row in rows if name in row.values]
            if marks and None not in marks and name not in column_of.values():
                return {**column_of, "mask": name}
    return column_of


def require_good(dataset: Dataset, *, skip_bad: bool = False) -> None:
    """Raise `DataError` for a data set without a good row, or with bad rows unless `skip_bad`."""
    path, count = dataset.path, len(dataset.bad)
    command = f"onebase data check {shlex.quote(path)}{dataset.options}"
    if not dataset.examples:
        shown = listed(dataset.bad)
        raise DataError(
            say(
                f"{path} has no row to train on. Bad rows: {count}: {shown}.",
                f"{path} 中没有可用于训练的数据行。坏行 {count} 行：{shown}。",
            ),
            say(
                f"Run `{command}`, then correct the rows or name the columns with `--columns`.",
                f"请运行 `{command}`，修正数据行，或用 `--columns` 指定列。",
            ),
        )
    if count and not skip_bad:
        raise bad_rows_error(
            path,
            dataset.bad,
            say(
                f"List them all with `{command}` and correct them, or train on the others with "
                "`--skip-bad`.",
                f"请用 `{command}` 查看全部并修正，或用 `--skip-bad` 跳过它们。",
            ),
        )


def _format(
    path: str | Path, rows: Sequence[Row], given: Mapping[str, str], encoding: str | None
) -> tuple[str, dict[str, str]]:
    counts = Counter(column for row in rows for column in row.values)
    if not counts:
        return UNKNOWN_FORMAT, dict(given)
    require_columns(given, counts)
    common = {column for column, count in counts.items() if 2 * count >= len(rows)}
    match = _detect(common, given, counts) or _detect(counts, given, counts)
    if match is None:
        if not given and {"chosen", "rejected"} <= counts.keys():
            raise _holds_pairs(path, {}, read_options({}, encoding))
        raise _no_format(path, list(counts), given)
    form, column_of = match
    if "chosen" in column_of:
        raise _holds_pairs(path, column_of, read_options({}, encoding))
    column_of = with_mask(rows, column_of, given)
    # A user who names the column of the answers wants to train on all of them.
    if not ({"output", "messages", "conversations"} & given.keys() or "label" in column_of):
        rating = rating_column(rows, counts.keys() - set(column_of.values()))
        if rating:
            raise _holds_ratings(path, column_of, *rating, read_options({}, encoding))
    return form.name, column_of


def _holds_ratings(
    path: str | Path, column_of: Mapping[str, str], column: str, command: str, options: str
) -> DataError:
    names = {role: name for role, name in column_of.items() if role not in _BESIDE_TEXT}
    align = _align_command(command, path, options)
    return DataError(
        say(
            f"{path} holds rated answers: the column {column!r} says how good each answer is. Training "
            "would treat bad answers like good ones.",
            f"{path} 中的回答带有评价：列 {column!r} 表示每个回答的好坏。直接训练会把差的回答当作好的回答。",
        ),
        say(
            f"Use both kinds with {align}. To train on all answers alike: `{columns_option(names)}`.",
            f"请用 {align} 利用这些评价。若确要把所有回答都用于训练：`{columns_option(names)}`。",
        ),
    )


def _align_command(command: str, path: str | Path, options: str) -> str:
    """The `align` command that trains a new task on a file. A reward model has a default method."""
    method = "" if command == "align reward" else " --method lora"
    return f"`onebase {command} --task TASK --data {shlex.quote(str(path))}{options}{method}`"


def _holds_pairs(path: str | Path, column_of: Mapping[str, str], options: str) -> DataError:
    dpo, reward = (
        _align_command(command, path, options) for command in ("align dpo", "align reward")
    )
    remedy = say(
        f"Train on them with {dpo}, or train a reward model with {reward}.",
        f"请用 {dpo} 训练，或用 {reward} 训练奖励模型。",
    )
    if "input" in column_of:
        names = columns_option({"input": column_of["input"], "output": column_of["chosen"]})
        remedy += say(
            f" To train on the chosen answers only: `{names}`.",
            f"若只用被选中的回答训练：`{names}`。",
        )
    return DataError(
        say(
            f"{path} holds preference pairs (chosen, rejected) instead of answers to train on.",
            f"{path} 是偏好数据（chosen、rejected），不是用于训练的回答。",
        ),
        remedy,
    )


def _detect(
    columns: Collection[str], given: Mapping[str, str], present: Collection[str]
) -> tuple[Format, dict[str, str]] | None:
    def rank(form: Format) -> tuple[bool, bool]:
        """A format with exactly the given roles first, input-output before others; else in order."""
        exact = form.required == set(given)
        return not exact, exact and form.name != "input-output"

    forms = [form for form in FORMATS if set(given) <= form.all_roles]
    for form in sorted(forms, key=rank):
        column_of = form.match(columns, given, present)
        if column_of is not None:
            return form, column_of
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
    if len(columns) == 1:
        return DataError(
            say(
                f"{path} has only the column {columns[0]!r}, so there are no answers to train on.",
                f"{path} 只有一列 {columns[0]!r}，没有可用于训练的回答。",
            ),
            say(
                f"Add answers in one of these formats: {known}. A file of prompts only is for "
                "`onebase align ppo`.",
                f"请加入回答，可用格式：{known}。只有提示的文件用于 `onebase align ppo`。",
            ),
        )
    first, second = columns if len(columns) == 2 else ("A", "B")
    option = columns_option({"input": first, "output": second})
    return DataError(
        say(
            f"{path} has the columns {', '.join(columns)}, which match no known format.",
            f"{path} 的列为 {', '.join(columns)}，不属于已知格式。",
        ),
        say(
            f"Name them with `{option}`, or use one of these formats: {known}.",
            f"请指定列：`{option}`；或使用以下格式之一：{known}。",
        ),
    )
