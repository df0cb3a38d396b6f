"""Which format a file has, told by its columns, and the file read as a `Dataset` of examples."""

import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onebase.data.columns import columns_option, read_options, require_columns, roles_of, shown
from onebase.data.conversion import convert
from onebase.data.example import BadRow, Dataset, Example
from onebase.data.fields import fields_of
from onebase.data.question import BEFORE, BENEATH
from onebase.data.row import Row
from onebase.data.rows import read_rows
from onebase.data.turns import MASKS, mask_of
from onebase.data.verdicts import judging_column
from onebase.errors import DataError, UsageError
from onebase.language import say

_NAMED_BAD_ROWS = 5
# What a row may hold beside its format's own columns.
_BESIDE = {**BEFORE, "mask": MASKS}
_BESIDE_TEXT = {**_BESIDE, **BENEATH}
# Columns that ask and never answer.
_ASKING = frozenset(
    ("instruction", "input", "prompt", "question"),
).union(*BEFORE.values(), *BENEATH.values())


@dataclass(frozen=True)
class Format:
    """Roles and, for each, the column names that stand for it, the first found winning.

    A role in `optional` may lack its column; those in `beside` always may.
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
    def every(self) -> set[str]:
        """The roles that may have a column."""
        return {*self.roles, *self.beside}

    def match(
        self,
        columns: Collection[str],
        given: Mapping[str, str],
        present: Collection[str] | None = None,
    ) -> dict[str, str] | None:
        """Role to column, `given` roles first; None where a role has no column. Roles that may lack
        theirs are looked for in all the columns `present`.
        """
        found: dict[str, str] = {}
        for role, names in {**self.roles, **self.beside}.items():
            lacking = role in self.optional or role in self.beside
            pool = columns if present is None or not lacking else present
            taken = {*found.values(), *given.values()}
            free = (name for name in names if name in pool and name not in taken)
            column = given.get(role) or next(free, None)
            if column is not None:
                found[role] = column
            elif not lacking:
                return None
        return found

    def __str__(self) -> str:
        return ",".join("|".join(names) for names in self.roles.values())


_PROMPT = {"prompt": ("prompt",)}
# In the order of detection. A preference set's `conversations` end with the question, so its
# three columns are asked for before ShareGPT's one.
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
UNKNOWN_FORMAT = "unknown"  # of a file with no row that can be read


def load_dataset(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
) -> Dataset:
    """Read every row of a file (or Hub data set); what is wrong with a row stands in `.bad`.

    `columns` names the file's column for a role (`{"input": "mr", "output": "ref"}`), over what
    detection would find. `encoding` is the one of a text that is not UTF-8. Raises `UsageError` for a
    role, column or encoding that does not exist, and `DataError` for a file that can't be read, has no
    known format, or holds preferences: pairs of answers, and answers that a column rates or judges.
    """
    table = read_rows(path, encoding=encoding)
    given = roles_of(columns or {}, {role for form in FORMATS for role in form.every})
    form, found = _format(path, table.rows, given, encoding)
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
        fields=fields_of(table.rows, found),
        examples=tuple(good),
        bad=tuple(sorted(bad, key=lambda row: (row.file, row.line))),
        labels=tuple(labels),
        sha256=table.sha256,
        options=read_options(given, encoding),
    )


def with_mask(
    rows: Sequence[Row], columns: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    """`columns` with the column that says which rows are learned, where one holds 0 and 1 alone."""
    found = {role: name for role, name in columns.items() if role != "mask" or role in given}
    if "mask" not in found:
        for name in MASKS:
            # A row without the column says nothing: it is learned.
            marks = [mask_of(row.values[name]) for row in rows if name in row.values]
            if marks and None not in marks and name not in found.values():
                return {**found, "mask": name}
    return found


def require_good(dataset: Dataset, *, skip_bad: bool = False) -> None:
    """Raise `DataError` unless the data set can be trained on.

    It can't while it holds bad rows, unless `skip_bad`, and never without a good one.
    """
    path, count = dataset.path, len(dataset.bad)
    command = f"onebase data check {shlex.quote(path)}{dataset.options}"
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
                f"See `{command}`, mend the rows or name the columns with `--columns`.",
                f"请运行 `{command}`，修正数据行，或用 `--columns` 指定列。",
            ),
        )
    if count and not skip_bad:
        raise DataError(
            say(
                f"{path} has bad rows: {count}: {shown}.", f"{path} 有 {count} 行坏数据：{shown}。"
            ),
            say(
                f"See them all with `{command}` and mend them, or train on the "
                "others with `--skip-bad`.",
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
    usual = {column for column, count in counts.items() if 2 * count >= len(rows)}
    match = _detect(usual, given, counts) or _detect(counts, given, counts)
    if match is None:
        if not given and {"chosen", "rejected"} <= counts.keys():
            raise _is_preference(path, {}, read_options({}, encoding))
        raise _no_format(path, list(counts), given)
    form, found = match
    if "chosen" in found:
        raise _is_preference(path, found, read_options({}, encoding))
    found = with_mask(rows, found, given)
    # Who names the answers means to learn them all.
    if not ({"output", "messages", "conversations"} & given.keys() or "label" in found):
        judging = judging_column(rows, counts.keys() - set(found.values()))
        if judging:
            raise _is_judged(path, found, *judging, read_options({}, encoding))
    return form.name, found


def _is_judged(
    path: str | Path, found: Mapping[str, str], column: str, command: str, options: str
) -> DataError:
    names = {role: name for role, name in found.items() if role not in _BESIDE_TEXT}
    learn = _learning(command, path, options)
    return DataError(
        say(
            f"{path} holds judged answers: the column {column!r} says how good each one is. Training "
            "would learn the bad ones like the good ones.",
            f"{path} 是带评判的回答：列 {column!r} 表示每个回答的好坏。直接训练会把差的回答也当作好的来学。",
        ),
        say(
            f"Learn from both with {learn}. To learn all answers alike: `{columns_option(names)}`.",
            f"请用 {learn} 学习其好坏。若确要一律学习：`{columns_option(names)}`。",
        ),
    )


def _learning(command: str, path: str | Path, options: str) -> str:
    """The command that learns a new task from a file. A reward model needs no method, it has its own."""
    method = "" if command == "align reward" else " --method lora"
    return f"`onebase {command} --task TASK --data {shlex.quote(str(path))}{options}{method}`"


def _is_preference(path: str | Path, found: Mapping[str, str], options: str) -> DataError:
    dpo, reward = (_learning(command, path, options) for command in ("align dpo", "align reward"))
    remedy = say(
        f"Learn from them with {dpo}, or a reward model with {reward}.",
        f"请用 {dpo} 学习，或用 {reward} 训练奖励模型。",
    )
    if "input" in found:
        names = columns_option({"input": found["input"], "output": found["chosen"]})
        remedy += say(
            f" To learn the chosen answers: `{names}`.", f"若要学习被选中的回答：`{names}`。"
        )
    return DataError(
        say(
            f"{path} holds preference pairs (chosen, rejected), not answers to learn.",
            f"{path} 是偏好数据（chosen、rejected），不是可供学习的回答。",
        ),
        remedy,
    )


def _detect(
    columns: Collection[str], given: Mapping[str, str], present: Collection[str]
) -> tuple[Format, dict[str, str]] | None:
    def rank(form: Format) -> tuple[bool, bool]:
        """First the format of just the given roles, by its general name; else in order."""
        exact = form.required == set(given)
        return not exact, exact and form.name != "input-output"

    forms = [form for form in FORMATS if set(given) <= form.every]
    for form in sorted(forms, key=rank):
        found = form.match(columns, given, present)
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
    if len(columns) == 1 or _ASKING.issuperset(columns):
        return _no_answers(path, columns, known)
    first, second = columns if len(columns) == 2 else ("A", "B")
    option = columns_option({"input": first, "output": second})
    header = ("", "")
    if str(path).lower().endswith((".csv", ".tsv")):
        header = (
            " If line 1 is an example already, write a line with the names above it.",
            "若第 1 行已是样本，请在其上方加一行列名。",
        )
    return DataError(
        say(
            f"{path} has the columns {shown(columns)}, which are no known format.",
            f"{path} 的列为 {shown(columns)}，不属于已知格式。",
        ),
        say(
            f"Name them: `{option}`; or use one of: {known}.{header[0]}",
            f"请指定列：`{option}`；或使用以下格式之一：{known}。{header[1]}",
        ),
    )


def _no_answers(path: str | Path, columns: list[str], known: str) -> DataError:
    one = len(columns) == 1
    listed = ", ".join(map(repr, columns))
    return DataError(
        say(
            f"{path} has the column{'' if one else 's'} {listed} alone: there are no answers to learn.",
            f"{path} 只有{'一' if one else ''}列 {listed}：没有可供学习的回答。",
        ),
        say(
            f"Add answers; use one of: {known}. Prompts alone are for `onebase align ppo`.",
            f"请加入回答；可用格式：{known}。只有提示的文件用于 `onebase align ppo`。",
        ),
    )
