"""The report on a data file before training: bad rows, duplicates, token counts, warnings."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from onebase.data.example import BadRow, Dataset, Example
from onebase.data.fields import unread
from onebase.data.refused_rows import rendered_examples
from onebase.data.similar_labels import similar_labels_warning
from onebase.data.template import Rendered, Template
from onebase.language import say

_FEW_ROWS = 8
_IMBALANCE = 10  # of the largest class to the smallest
_SHOWN_LINES = 5


@dataclass(frozen=True)
class Duplicate:
    """Two lines with the same input; `conflicting` if their outputs differ."""

    first: int
    second: int
    conflicting: bool


@dataclass(frozen=True)
class Spread:
    """The minimum, median, maximum and total of a count."""

    min: int
    median: float
    max: int
    total: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> "Spread":
        """The spread of these counts; all 0 if there are none."""
        if not counts:
            return cls(0, 0.0, 0, 0)
        return cls(min(counts), float(median(counts)), max(counts), sum(counts))


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`.

    `fields` gives, for every column and every field of turns (`messages[].weight`), the role that it is
    read for, or that it is unread, refused or empty. `rows` counts good and bad rows. `bad` lists the
    file's bad rows, then those of the held-out file. `duplicates` pair the first line of an input with
    each later one; `overlap` pairs a line with a line of the held-out file that has the same input.
    Token counts are per example after truncation; `truncated` examples lose a part of their text.
    """

    file: str
    format: str
    columns: dict[str, str]
    fields: dict[str, str]
    rows: int
    bad: tuple[BadRow, ...]
    duplicates: tuple[Duplicate, ...]
    overlap: tuple[tuple[int, int], ...]
    prompt_tokens: Spread
    learned_tokens: Spread
    total_tokens: int
    truncated: int
    labels: dict[str, int]
    warnings: tuple[str, ...]
    first_example: str

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return asdict(self)


def check(
    dataset: Dataset,
    template: Template,
    *,
    held_out: Dataset | None = None,
    ends: Collection[int] = (),
) -> CheckReport:
    """Check a data set as `template` renders it. A row that the template refuses is a bad row, also in
    the held-out file. `ends` are the base's own end tokens.
    """
    dataset, rendered = rendered_examples(dataset, template)
    good = dataset.examples
    if held_out:
        held_out, _ = rendered_examples(held_out, template)
    learned = [sum(tokens.loss_mask) for tokens in rendered]
    prompt = [len(tokens.ids) - sum(tokens.loss_mask) for tokens in rendered]
    labels = Counter(example.answer for example in good) if dataset.labels else Counter()
    nothing_learned = [example for example, count in zip(good, learned, strict=True) if not count]
    return CheckReport(
        file=dataset.path,
        format=dataset.format,
        columns=dict(dataset.columns),
        fields={field.name: field.use for field in dataset.fields},
        rows=len(dataset.examples) + len(dataset.bad),
        bad=dataset.bad + (held_out.bad if held_out else ()),
        duplicates=_duplicates(good),
        overlap=_overlap(good, held_out.examples) if held_out else (),
        prompt_tokens=Spread.of(prompt),
        learned_tokens=Spread.of(learned),
        total_tokens=sum(prompt) + sum(learned),
        truncated=sum(tokens.truncated for tokens in rendered),
        labels=dict(labels.most_common()),
        warnings=(
            *unread(dataset.fields),
            *(unread(held_out.fields, held_out.path) if held_out else ()),
            *similar_labels_warning(labels + _labels(held_out)),
            *_warnings(good, labels, template, nothing_learned, ends),
            *rewritten(good, rendered),
        ),
        first_example=template.marked(good[0]) if good else "",
    )


def _labels(dataset: Dataset | None) -> Counter[str]:
    """The number of rows of each class."""
    if dataset is None or not dataset.labels:
        return Counter()
    return Counter(example.answer for example in dataset.examples)


def _duplicates(examples: Sequence[Example]) -> tuple[Duplicate, ...]:
    first_of: dict[object, Example] = {}
    duplicates: list[Duplicate] = []
    for example in examples:
        first = first_of.setdefault(example.input_key, example)
        if first is not example:
            duplicates.append(Duplicate(first.line, example.line, first.answer != example.answer))
    return tuple(duplicates)


def _overlap(
    examples: Sequence[Example], held_out: Sequence[Example]
) -> tuple[tuple[int, int], ...]:
    lines: dict[object, int] = {}
    for example in held_out:
        lines.setdefault(example.input_key, example.line)
    return tuple(
        (example.line, lines[example.input_key])
        for example in examples
        if example.input_key in lines
    )


def _warnings(
    examples: Sequence[Example],
    labels: Counter[str],
    template: Template,
    nothing_learned: Sequence[Example],
    ends: Collection[int],
) -> list[str]:
    warnings = few_rows(len(examples)) + no_end(template) + lost_characters(examples)
    warnings += control_tokens(examples, template, ends) + ends_inside(examples, template)
    if labels and max(labels.values()) > _IMBALANCE * min(labels.values()):
        (most, many), *_, (least, few) = labels.most_common()
        warnings.append(
            say(
                f"The labels are imbalanced: {many} rows of {most!r}, {few} of {least!r}.",
                f"标签不均衡：{most!r} 有 {many} 行，{least!r} 有 {few} 行。",
            )
        )
    if copies := [example for example in examples if example.answer == example.input]:
        warnings.append(
            say(
                f"The answer only repeats the input in {named_lines(copies)}.",
                f"{named_lines(copies)}的回答只是重复了输入。",
            )
        )
    return warnings + no_room(nothing_learned, template)


def left_out(bad: Sequence[BadRow]) -> list[str]:
    """A training's note on skipped rows; none without bad rows."""
    if not bad:
        return []
    return [
        say(
            f"Left out: {len(bad)} {'row' if len(bad) == 1 else 'rows'}, such as {bad[0]}. A run lists all "
            "of them in its folder (skipped-TASK.jsonl).",
            f"未使用 {len(bad)} 行，例如 {bad[0]}。训练会将其全部列在训练目录的 skipped-任务名.jsonl 中。",
        )
    ]


def few_rows(count: int) -> list[str]:
    """A warning if `count` rows are too few for reliable results."""
    if count >= _FEW_ROWS:
        return []
    return [
        say(
            f"Very few rows ({count}): results will depend on chance.",
            f"数据行很少（{count} 行），结果会有较大偶然性。",
        )
    ]


def no_end(template: Template) -> list[str]:
    """A warning if nothing marks the end of an answer."""
    if template.ends or template.stops:
        return []
    return [
        say(
            "Nothing marks the end of an answer: the template writes nothing after it, and the "
            "tokenizer has no end token. The model can't learn where to stop, so answers run on to "
            "max_tokens, or to a stop string in the request. (The end token is eos_token in "
            "tokenizer_config.json.)",
            "没有任何标记表示回答结束：模板在回答之后不写任何内容，分词器也没有结束标记。模型学不到在何处停止，"
            "回答会一直生成到 max_tokens，或遇到请求中的停止字符串为止。（结束标记即 "
            "tokenizer_config.json 中的 eos_token。）",
        )
    ]


def lost_characters(examples: Sequence[Example]) -> list[str]:
    """A warning if texts contain U+FFFD, which an earlier conversion wrote for unreadable bytes."""
    damaged = [
        example for example in examples if any("\ufffd" in turn.content for turn in example.turns)
    ]
    if not damaged:
        return []
    lines = named_lines(damaged)
    return [
        say(
            f"U+FFFD (\ufffd) in {lines}: characters were lost when the file was converted.",
            f"{lines}含有 U+FFFD（\ufffd）：文件在转换编码时丢失了字符。",
        )
    ]


def control_tokens(
    examples: Sequence[Example], template: Template, ends: Collection[int] = ()
) -> list[str]:
    """A warning for each special token in a text, with its effect in answers. Answers also end at the
    base's own `ends`.
    """
    tokens = sorted(template.special_tokens, key=len, reverse=True)
    special = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
    examples_with: dict[str, list[Example]] = {}
    for example in examples:
        for token in {token for turn in example.turns for token in special.findall(turn.content)}:
            examples_with.setdefault(token, []).append(example)
    return [
        say(
            f"The content of {named_lines(where)} contains the special token {token!r}, which the model "
            "reads as a control token. ",
            f"{named_lines(where)}的内容含有特殊标记 {token!r}，模型会将其视为控制标记。",
        )
        + _in_answers(template.special_tokens[token], template, ends)
        for token, where in sorted(examples_with.items())
    ]


def _in_answers(token: int, template: Template, ends: Collection[int]) -> str:
    """The effect of a special token that the model writes."""
    if token in template.ends or token in ends:
        return say("An answer ends at this token.", "回答到该标记即结束。")
    if token in template.hidden:
        return say("Answers are shown without it.", "回答中不显示该标记。")
    return say("Answers show it as text.", "回答中会原样显示该标记。")


def ends_inside(examples: Sequence[Example], template: Template) -> list[str]:
    """A warning if an answer contains a stop string of the template."""
    warnings = []
    for stop in template.stops:
        answers = [
            example
            for example in examples
            if any(stop in turn.content for turn in example.turns if turn.role == "assistant")
        ]
        if answers:
            warnings.append(
                say(
                    f"The template ends answers with {stop!r}, but the answer of {named_lines(answers)} "
                    "contains it too: such an answer will stop there.",
                    f"模板以 {stop!r} 结束回答，而{named_lines(answers)}的回答内部也含有它："
                    "这样的回答会在该处停止。",
                )
            )
    return warnings


def no_room(examples: Sequence[Example], template: Template) -> list[str]:
    """A warning for examples whose answers are truncated away."""
    if not examples:
        return []
    lines = named_lines(examples)
    return [
        say(
            f"No answer is left to train on in {lines}: the prompt alone fills "
            f"max_tokens ({template.max_tokens}).",
            f"{lines}没有可学习的内容：提示已占满 max_tokens（{template.max_tokens}）。",
        )
    ]


def rewritten(examples: Sequence[Example], rendered: Sequence[Rendered]) -> list[str]:
    """A warning if earlier answers are not in the loss because the template rewrites them."""
    affected = [example for example, row in zip(examples, rendered, strict=True) if row.rewritten]
    if not affected:
        return []
    count, lines = sum(row.rewritten for row in rendered), named_lines(affected)
    return [
        say(
            f"Earlier answers are not trained on in {lines} ({count} answers): the chat template rewrites "
            "them, for example to drop earlier reasoning. The last answer of each row is trained on.",
            f"{lines}中较早的回答（共 {count} 个）不参与训练：对话模板会改写它们（例如去掉较早的思考过程）。"
            "每行最后一个回答参与训练。",
        )
    ]


def named_lines(examples: Sequence[Example]) -> str:
    """The lines of examples as part of a sentence."""
    lines = list(dict.fromkeys(example.line for example in examples))
    named = ", ".join(map(str, lines[:_SHOWN_LINES]))
    more = len(lines) - _SHOWN_LINES
    if len(lines) == 1:
        return say(f"line {named}", f"第 {named} 行")
    rest = say(f" and {more} more", f" 等 {len(lines)} 行") if more > 0 else ""
    return say(f"lines {named}{rest}", f"第 {named}{rest or ' 行'}")
