"""The check of a data file, and its report as text."""

import shlex
from pathlib import Path
from typing import Any

from onebase.adapters.workspace import Workspace
from onebase.data.check import CheckReport, check
from onebase.data.columns import columns_of
from onebase.data.example import Dataset
from onebase.data.fields import EMPTY, REFUSED, UNREAD
from onebase.data.formats import load_dataset
from onebase.data.preference_check import PreferenceReport, check_preferences
from onebase.data.preferences import BARE, PreferenceSet, load_preferences
from onebase.data.template import Template
from onebase.errors import CorruptFileError, DataError, OnebaseError, UsageError
from onebase.language import say
from onebase.model.eos import named_ends
from onebase.model.fetch import DEFAULT_BASE, resolve
from onebase.model.tokenizer import read_tokenizer
from onebase.quantity import listed, plural

_SHOWN = 10  # items of a list


def check_file(
    file: str,
    held_out: str | None,
    *,
    columns: list[str] | None,
    encoding: str | None,
    content: str,
    base: str | None,
    instruction: str | None,
    template: str,
    max_tokens: int,
) -> tuple[Dataset | PreferenceSet, CheckReport | PreferenceReport]:
    """A file's rows, and the report on them. Loads only the tokenizer of the base."""
    chosen = columns_of(columns) if columns else None
    data = _loaded(file, chosen, encoding, content)
    bare = isinstance(data, PreferenceSet) and data.bare
    folder = resolve(base or DEFAULT_BASE)
    ends = named_ends(folder)
    rendering = Template(
        _tokenizer(folder),
        kind=BARE if bare and template == "auto" else template,
        instruction=instruction,
        max_tokens=max_tokens,
    )
    if isinstance(data, PreferenceSet):
        judged = load_preferences(held_out, columns=chosen, encoding=encoding) if held_out else None
        return data, check_preferences(data, rendering, held_out=judged, ends=ends)
    examples = load_dataset(held_out, columns=chosen, encoding=encoding) if held_out else None
    return data, check(data, rendering, held_out=examples, ends=ends)


def _loaded(
    file: str, columns: dict[str, str] | None, encoding: str | None, content: str
) -> Dataset | PreferenceSet:
    """The rows as answers if their columns match such a format, otherwise as preferences."""
    if content == "preferences":
        return load_preferences(file, columns=columns, encoding=encoding)
    try:
        return load_dataset(file, columns=columns, encoding=encoding)
    except (DataError, UsageError) as refusal:
        if content == "answers":
            raise
        try:
            return load_preferences(file, columns=columns, encoding=encoding)
        except OnebaseError:
            raise refusal from None


def _tokenizer(path: Path) -> Any:
    """A base's tokenizer; its weights are not needed."""
    try:
        return read_tokenizer(path)
    except (ValueError, KeyError, OSError) as error:
        raise CorruptFileError(
            say(
                f"The tokenizer in {path} can't be loaded: {error}",
                f"无法加载 {path} 中的分词器：{error}",
            ),
            say(
                "Fetch the base again, or check its tokenizer.json.",
                "请重新获取基座，或检查其 tokenizer.json。",
            ),
        ) from error


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    return [
        *_summary(report),
        *_columns(report["fields"]),
        *_lengths(report),
        *_contents(report),
        *_bad_rows(report["bad"]),
        *_repeated(report),
        *_overlap(report["overlap"]),
        *_warnings(report["warnings"]),
        *_first_example(report["first_example"]),
    ]


def next_step(
    data: Dataset | PreferenceSet, report: CheckReport | PreferenceReport, workspace: Workspace
) -> str:
    """The command that learns from the file, or what has to be corrected first."""
    file = shlex.quote(data.path) + data.options
    start = "onebase train" if isinstance(report, CheckReport) else report.read_by[-1]
    method = " --method lora" if start != "onebase align reward" else ""
    command = f"{start} --task T --data {file}{method}{workspace.option}"
    if report.bad and len(report.bad) >= report.rows:
        return say("Next: correct the bad rows.", "下一步：请修正坏行。")
    if report.bad:
        return say(
            f"Next: correct the bad rows, or leave them out: {command} --skip-bad",
            f"下一步：请修正坏行，或跳过它们：{command} --skip-bad",
        )
    return say(f"Next: {command}", f"下一步：{command}")


def _summary(report: dict[str, Any]) -> list[str]:
    file, form, rows = report["file"], report["format"], report["rows"]
    count = plural(rows, "row", "rows")
    if "kind" not in report:
        return [
            say(
                f"{file}: {count} with answers to learn, format {form}.",
                f"{file}：{rows:,} 行带回答的样例，格式 {form}。",
            )
        ]
    kind = {
        "pairs": say("pairs of answers", "回答对"),
        "ratings": say("rated answers", "带评分的回答"),
        "judged": say("answers labelled good or bad", "标注为好或坏的回答"),
    }[report["kind"]]
    commands = listed(report["read_by"])
    return [
        say(
            f"{file}: {count} with {kind}, format {form}; used by {commands}.",
            f"{file}：{rows:,} 行{kind}，格式 {form}；用于 {commands}。",
        )
    ]


def _columns(fields: dict[str, str]) -> list[str]:
    uses = {
        UNREAD: say("not read", "未读取"),
        EMPTY: say("empty", "为空"),
        REFUSED: say("not supported", "不支持"),
    }
    return [
        say("Columns and their use:", "各列的用途："),
        *(f"  {name}: {uses.get(use, use)}" for name, use in fields.items()),
    ]


def _lengths(report: dict[str, Any]) -> list[str]:
    parts = {
        "prompt_tokens": say("prompts", "提示"),
        "learned_tokens": say("learned parts", "学习部分"),
        "answer_tokens": say("answers", "回答"),
    }
    lines = [say("Lengths in tokens:", "词元数：")]
    for key, name in parts.items():
        if key in report:
            spread = report[key]
            least, middle, most = spread["min"], spread["median"], spread["max"]
            lines.append(
                say(f"  {name}: {least} each", f"  {name}：均为 {least}")
                if least == most
                else say(
                    f"  {name}: {least} to {most}, median {middle:g}",
                    f"  {name}：{least} 至 {most}，中位数 {middle:g}",
                )
            )
    total, truncated = report["total_tokens"], report["truncated"]
    lines.append(say(f"  total: {total:,}", f"  合计：{total:,}"))
    if truncated:
        lines.append(
            say(
                f"  {plural(truncated, 'example is', 'examples are')} too long and truncated "
                "(--max-tokens).",
                f"  {truncated:,} 个样例过长，被截断（--max-tokens）。",
            )
        )
    return lines


def _contents(report: dict[str, Any]) -> list[str]:
    lines = []
    if labels := report.get("labels"):
        counts = listed([f"{label} ({count:,})" for label, count in labels.items()])
        lines.append(say(f"Labels and their rows: {counts}.", f"标签及行数：{counts}。"))
    if ratings := report.get("ratings"):
        lowest, middle, highest = ratings["lowest"], ratings["mean"], ratings["highest"]
        lines.append(
            say(
                f"Ratings: {lowest:g} to {highest:g}, mean {middle:.3g}, "
                f"{plural(ratings['different'], 'different value', 'different values')}.",
                f"评分：{lowest:g} 至 {highest:g}，平均 {middle:.3g}，"
                f"{ratings['different']} 个不同的值。",
            )
        )
    if (longer := report.get("longer_chosen")) is not None:
        lines.append(
            say(
                f"The chosen answer is the longer one in {longer:.0%} of the pairs.",
                f"{longer:.0%} 的回答对中，被选中的回答更长。",
            )
        )
    return lines


def _bad_rows(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return [say("No bad rows.", "没有坏行。")]
    count = len(rows)
    return [
        say(
            f"{plural(count, 'bad row', 'bad rows')} that can't be used for training:",
            f"{count:,} 个坏行，无法用于训练：",
        ),
        *_first(
            [
                f"{row['file']}:{row['line']}"
                + (
                    say(f", column {row['column']!r}", f"，列 {row['column']!r}")
                    if row["column"]
                    else ""
                )
                + say(": ", "：")
                + row["reason"]
                for row in rows
            ]
        ),
    ]


def _repeated(report: dict[str, Any]) -> list[str]:
    """The duplicates in a data set or among preferences."""
    if "duplicates" in report:
        rows, key = report["duplicates"], "conflicting"
        same = say("the same input and the same answer", "输入相同，回答也相同")
        other = say("the same input, but different answers", "输入相同，回答不同")
    else:
        rows, key = report["repeats"], "contradicting"
        same = say("the same answers, judged the same", "回答相同，评判也相同")
        other = say("the same answers, judged differently", "回答相同，评判相反")
    if not rows:
        return [say("No duplicates.", "没有重复行。")]
    count = len(rows)
    return [
        say(f"{plural(count, 'duplicate', 'duplicates')}:", f"{count:,} 处重复："),
        *_first(
            [
                say(
                    f"lines {row['first']} and {row['second']}: ",
                    f"第 {row['first']} 与 {row['second']} 行：",
                )
                + (other if row[key] else same)
                for row in rows
            ]
        ),
    ]


def _overlap(pairs: list[tuple[int, int]]) -> list[str]:
    if not pairs:
        return []
    count = len(pairs)
    return [
        say(
            f"{plural(count, 'row', 'rows')} whose input is also in the held-out file: the evaluation "
            "would be too optimistic.",
            f"{count:,} 行的输入也出现在评估文件中：评估结果会偏高。",
        ),
        *_first(
            [
                say(
                    f"line {line}: line {held_out} of the held-out file",
                    f"第 {line} 行：评估文件第 {held_out} 行",
                )
                for line, held_out in pairs
            ]
        ),
    ]


def _warnings(warnings: list[str]) -> list[str]:
    if not warnings:
        return []
    return [say("Warnings:", "警告："), *(f"  {text}" for text in warnings)]


def _first_example(text: str) -> list[str]:
    if not text:
        return []
    return [say("First example, the learned part in ⟦ ⟧:", "第一个样例，学习部分在 ⟦ ⟧ 中："), text]


def _first(items: list[str]) -> list[str]:
    """The first items of a list, indented, and the number of the others."""
    more = len(items) - _SHOWN
    rest = [say(f"  … and {more:,} more", f"  … 另有 {more:,} 项")] if more > 0 else []
    return [*(f"  {item}" for item in items[:_SHOWN]), *rest]
