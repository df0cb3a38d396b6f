"""The verdict: the winner or the tied set, what the rows can show, and where the settings come from."""

from collections.abc import Callable

from onebase.compare.evidence import Evidence
from onebase.compare.measured_method import MeasuredMethod
from onebase.compare.metrics.metric_name import direction_note, metric_in_chinese, metric_name
from onebase.compare.report.document import Block, Paragraph, Section
from onebase.compare.result import BASE, EXAMPLES
from onebase.language import say
from onebase.quantity import duration, interval, joined, number, size

# A cost, how it is printed, and its name after "the least".
_COSTS: tuple[
    tuple[Callable[[MeasuredMethod], float | None], Callable[[float], str], str, str], ...
] = (
    (lambda method: method.peak_memory_bytes, size, "memory", "占用内存最少"),
    (lambda method: method.seconds, duration, "training time", "训练时间最短"),
    (lambda method: method.adapter_bytes, size, "disk space", "占用磁盘最少"),
)


def verdict_section(evidence: Evidence) -> Section:
    """The section that a hurried reader reads."""
    texts = [_base(evidence), _cheapest(evidence), *evidence.summary.notes(), _settings(evidence)]
    if evidence.diverged:
        names = joined(evidence.diverged)
        texts.append(
            say(
                f"Training diverged in every seed of {names}: there is nothing to compare.",
                f"{names} 的所有随机种子都训练发散，没有可比较的结果。",
            )
        )
    blocks: list[Block] = [Paragraph(text) for text in texts if text]
    return Section("verdict", say("Verdict", "结论"), _lead(evidence), tuple(blocks))


def _lead(evidence: Evidence) -> str:
    verdict = evidence.summary.verdict
    if not evidence.summary.intervals:
        return say(
            "No method has a result: every training diverged.", "所有训练都已发散，没有任何结果。"
        )
    if verdict.best is None:
        name = metric_name(evidence.metric)
        return say(
            f"There is no best method: {name} is measured, but a higher value is neither better nor worse.",
            f"没有最佳方法：指标“{name}”的数值没有好坏之分。",
        )
    name, name_zh = metric_name(evidence.metric), metric_in_chinese(evidence.metric)
    best = _with_interval(evidence, verdict.best) + direction_note(evidence.summary.direction)
    if verdict.winner:
        return say(
            f"{verdict.winner} is the best: its mean {name} is {best}, and every other method is worse "
            "by the paired test.",
            f"{verdict.winner} 最好：平均{name_zh}为 {best}；经配对检验，其余方法都更差。",
        )
    others = joined(method for method in verdict.tied if method != verdict.best)
    return say(
        f"{verdict.best} has the best mean {name}, {best}, but the held-out rows cannot tell it from "
        f"{others}.",
        f"{verdict.best} 的平均{name_zh}最好，为 {best}，但留出数据不足以把它与 {others} 区分开。",
    )


def _with_interval(evidence: Evidence, method: str) -> str:
    """`0.912 [0.874, 0.950]`."""
    found = evidence.summary.intervals[method]
    shown = interval(found.low, found.high, evidence.places)
    return f"{number(found.mean, evidence.places)} {shown}"


def _base(evidence: Evidence) -> str:
    """A base that is in the tied set: then nothing shows that training is worth it."""
    names = {BASE: ("the base", "基座"), EXAMPLES: ("the base with examples", "基座加示例")}
    tied = [name for name in (BASE, EXAMPLES) if name in evidence.summary.verdict.tied]
    if not tied:
        return ""
    en = " and ".join(names[name][0] for name in tied)
    return say(
        f"{en[0].upper()}{en[1:]} {'is' if len(tied) == 1 else 'are'} in the tied set: these rows do not "
        "show that training is worth its cost.",
        f"{'和'.join(names[name][1] for name in tied)}也在并列组中：这些数据不能证明训练值得付出成本。",
    )


def _cheapest(evidence: Evidence) -> str:
    """Which of the tied methods costs least."""
    methods = [
        evidence.methods[name]
        for name in evidence.summary.verdict.tied
        if evidence.methods[name].trained
    ]
    if len(methods) < 2:
        return ""
    least: dict[str, list[str]] = {}
    for value, text, en, zh in _COSTS:
        known = [(cost, method.name) for method in methods if (cost := value(method)) is not None]
        if len(known) == len(methods):
            cost, name = min(known)
            least.setdefault(name, []).append(say(f"{en} ({text(cost)})", f"{zh}（{text(cost)}）"))
    if not least:
        return ""
    parts = [
        say(f"{name} takes the least {joined(found)}", f"{name} {'、'.join(found)}")
        for name, found in least.items()
    ]
    return say(
        f"Of the trained methods that are tied, {joined(parts)}.",
        f"在并列的训练方法中，{'；'.join(parts)}。",
    )


def _settings(evidence: Evidence) -> str:
    source = evidence.comparison.settings
    if source == "tuned":
        return say(
            "The settings of every method were chosen on the validation rows by a race with the same "
            "budget of tokens. The methods are compared at equal tuning; more budget might change "
            "their order.",
            "每种方法的设置都在验证集上以相同的词元预算通过竞赛选出。各方法的调参力度相同；预算更大时，"
            "排名仍可能变化。",
        )
    if source == "given":
        return say(
            "The settings are the user's. If one method was tuned with more care than another, this "
            "comparison measures that too; --tune gives each method the same budget.",
            "设置由用户给定。如果各方法的调参程度不同，对比结果也会受其影响；使用 --tune 可以让每种方法"
            "获得相同的调参预算。",
        )
    return say(
        "Every method ran with its default settings. This compares the defaults, not the best that "
        "each method can do; --tune gives each method the same budget to find its settings.",
        "每种方法都使用默认设置。这里比较的是默认设置，而不是各方法的最佳水平；使用 --tune 可以让每种"
        "方法以相同的预算寻找设置。",
    )
