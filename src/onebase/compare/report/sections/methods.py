"""The methods: what each reaches and what each takes; the base's rows set apart."""

from collections.abc import Callable

from onebase.compare.evidence import Evidence
from onebase.compare.measured_method import MeasuredMethod
from onebase.compare.metrics.metric_name import metric_name, tongue_name
from onebase.compare.report.document import Column, Mark, Row, Section, Table
from onebase.compare.result import BASE, EXAMPLES
from onebase.language import say
from onebase.quantity import (
    MISSING,
    decimals,
    duration,
    interval,
    listed,
    number,
    percent,
    signed,
    size,
)


def methods_section(evidence: Evidence) -> Section:
    """The two tables of the methods."""
    return Section(
        "methods",
        say("The methods", "各方法的结果"),
        _lead(evidence),
        (_quality(evidence), _cost(evidence)),
    )


def _lead(evidence: Evidence) -> str:
    trained = evidence.trained
    parts = []
    for name, en, zh in (
        (BASE, "the base with its instruction alone", "只用指令的基座"),
        (EXAMPLES, "the base with examples in its prompt", "提示中带示例的基座"),
    ):
        if name not in evidence.summary.intervals:
            continue
        better = sum(evidence.beats(method, name) is True for method in trained)
        mean = number(evidence.mean(name), evidence.places)
        parts.append(say(f"{better} beat {en} ({mean})", f"{better} 种优于{zh}（{mean}）"))
    if not parts or evidence.summary.direction == "neutral":
        return say(
            f"{len(trained)} methods were trained and measured on the same held-out rows.",
            f"共训练了 {len(trained)} 种方法，并在相同的留出数据上评测。",
        )
    return say(
        f"Of {len(trained)} trained methods, {' and '.join(parts)}, by the paired test.",
        f"经配对检验，{len(trained)} 种训练方法中，{'，'.join(parts)}。",
    )


def _rows(evidence: Evidence, cells: Callable[[MeasuredMethod], list[str]]) -> tuple[Row, ...]:
    names = [*evidence.trained, *evidence.diverged, *evidence.references]
    return tuple(
        Row((name, *cells(evidence.methods[name])), _mark(evidence, name)) for name in names
    )


def _mark(evidence: Evidence, name: str) -> Mark:
    standing = evidence.standing(name)
    if standing == "winner":
        return "winner"
    if standing == "tied":
        return "tied"
    return "" if evidence.methods[name].trained else "reference"


def _standing(evidence: Evidence, name: str) -> str:
    if name not in evidence.summary.intervals:
        return say("diverged", "发散")
    if evidence.summary.direction == "neutral":
        return MISSING
    return {
        "winner": say("best", "最佳"),
        "tied": say("tied", "并列"),
    }.get(evidence.standing(name), say("worse", "较差"))


def _quality(evidence: Evidence) -> Table:
    metrics = dict.fromkeys(
        name
        for method in evidence.methods.values()
        for name in method.metrics
        if name != evidence.metric
    )
    places = {
        name: decimals(method.metrics.get(name, 0.0) for method in evidence.methods.values())
        for name in metrics
    }

    def cells(method: MeasuredMethod) -> list[str]:
        return [
            _standing(evidence, method.name),
            *_metric_cells(evidence, method),
            *(number(method.metrics.get(name), places[name]) for name in metrics),
        ]

    return Table(
        say("Quality on the held-out rows", "留出数据上的质量"),
        (
            Column(say("method", "方法")),
            Column(say("against the best", "与最佳相比")),
            Column(metric_name(evidence.metric), numeric=True),
            Column(say("95 % interval", "95 % 区间"), numeric=True),
            Column(say("seeds: SD", "种子间标准差"), numeric=True),
            *(Column(metric_name(name), numeric=True) for name in metrics),
        ),
        _rows(evidence, cells),
        _quality_note(evidence),
    )


def _metric_cells(evidence: Evidence, method: MeasuredMethod) -> list[str]:
    found = evidence.summary.intervals.get(method.name)
    if found is None:
        return [MISSING, MISSING, MISSING]
    spread = evidence.summary.seeds.get(method.name)
    deviation = spread.deviation if spread else None
    return [
        number(found.mean, evidence.places),
        interval(found.low, found.high, evidence.places),
        number(deviation, evidence.places),
    ]


def _quality_note(evidence: Evidence) -> str:
    rows, clusters = evidence.summary.rows, evidence.summary.clusters
    text = say(
        f"The interval is over the {rows} held-out rows ({clusters} different inputs), seeds averaged. "
        "The standard deviation (SD) is over the seeds: a separate source of variance. Intervals that "
        "overlap decide nothing; the pairs below do.",
        f"区间反映 {rows} 行留出数据（{clusters} 个不同输入）带来的不确定性，已对种子取平均；标准差反映种子之间的"
        "差异，是另一个方差来源。区间重叠说明不了问题，以下文的两两比较为准。",
    )
    if evidence.references:
        text += say(
            f" {listed(evidence.references)}: not trained; a method has to beat them.",
            f"{listed(evidence.references)} 未经训练，训练方法必须优于它们。",
        )
    diverged = {
        name: method.diverged for name, method in evidence.methods.items() if method.diverged
    }
    if diverged:
        shown = listed(f"{name} ({count})" for name, count in diverged.items())
        text += say(f" Diverged seeds are left out: {shown}.", f"发散的种子不计入：{shown}。")
    return text


def _cost(evidence: Evidence) -> Table:
    tongues = dict.fromkeys(
        tongue for method in evidence.methods.values() for tongue in method.forgetting
    )

    def cells(method: MeasuredMethod) -> list[str]:
        speed = method.tokens_per_second
        if not method.trained:
            shown = _or_missing(speed, lambda value: f"{value:,.0f}")
            return [*[MISSING] * 7, shown, *[MISSING] * len(tongues)]
        return [
            f"{method.trainable:,}",
            percent(method.trainable_percent),
            _or_missing(method.peak_memory_bytes, size),
            _or_missing(method.seconds, duration),
            _or_missing(method.cpu_seconds, duration),
            size(method.adapter_bytes),
            _or_missing(method.load_seconds, duration),
            _or_missing(speed, lambda value: f"{value:,.0f}"),
            *(signed(method.forgetting.get(tongue)) for tongue in tongues),
        ]

    titles = (
        say("trainable parameters", "可训练参数"),
        say("share", "占比"),
        say("peak memory", "峰值内存"),
        say("training time", "训练时间"),
        say("CPU time", "CPU 时间"),
        say("adapter size", "适配器大小"),
        say("load time", "加载时间"),
        say("tokens/s", "词元/秒"),
        *(
            say(f"forgetting, {tongue_name(tongue)}", f"遗忘（{tongue_name(tongue)}）")
            for tongue in tongues
        ),
    )
    return Table(
        say("What each method takes", "各方法的开销"),
        (Column(say("method", "方法")), *(Column(title, numeric=True) for title in titles)),
        _rows(evidence, cells),
        _cost_note(evidence, bool(tongues)),
    )


def _cost_note(evidence: Evidence, forgetting: bool) -> str:
    seeds = sorted(
        {
            arm.seed
            for arm in evidence.comparison.arms
            if arm.cost is not None and arm.seed is not None
        }
    )
    shown = listed(map(str, seeds))
    if seeds:
        text = say(
            "Memory and time are of a process that trains this method alone, loading included, not a "
            f"share of the joint run (seed {shown}).",
            f"内存和时间来自只训练该方法的独立进程（含加载），不是联合训练中的分摊值（种子 {shown}）。",
        )
    else:
        text = say(
            "Memory and time of a method alone were not measured.", "未测量单独训练时的内存和时间。"
        )
    text += say(" Tokens/s is the speed of answering.", "词元/秒为回答时的速度。")
    if forgetting:
        text += say(
            " Forgetting is the rise of the loss on neutral text, in nats per token.",
            "遗忘指中性文本上损失的上升，单位为 nat/词元。",
        )
    return text


def _or_missing(value: float | None, text: Callable[[float], str]) -> str:
    return MISSING if value is None else text(value)
