"""The usual table of the methods, tested: what tutorials claim beside what was measured here."""

from onebase.compare.evidence import Evidence
from onebase.compare.report.claims import CLAIMS, Finding
from onebase.compare.report.document import Column, Mark, Row, Section, Table
from onebase.language import say
from onebase.quantity import MISSING


def claims_section(evidence: Evidence) -> Section:
    """Each claim: held, not held, or not decided, with its numbers."""
    findings = [(claim, claim.test(evidence)) for claim in CLAIMS]
    counts = dict.fromkeys(("held", "not held", "not decided"), 0)
    for _, finding in findings:
        counts[finding.result] += 1
    rows = tuple(
        Row(
            (
                say(*claim.text),
                say(*claim.reading) or MISSING,
                finding.numbers,
                _result(finding),
            ),
            _mark(finding),
        )
        for claim, finding in findings
    )
    table = Table(
        say("Claims of the usual tutorials", "常见教程中的说法"),
        (
            Column(say("claim", "说法")),
            Column(say("read as", "此处的判定标准")),
            Column(say("measured here", "本次测量")),
            Column(say("result", "结果")),
        ),
        rows,
        say(
            "They are claims about large models on a GPU; this is one base, one data set and one "
            "machine. Costs less than 10 % apart are not told apart; quality is decided by the paired "
            "test.",
            "这些说法针对的是 GPU 上的大模型，而这里只有一个基座、一份数据和一台机器。成本相差不到 10 % "
            "视为无法区分；质量以配对检验为准。",
        ),
    )
    lead = say(
        f"Of {len(CLAIMS)} usual claims, {counts['held']} held here, {counts['not held']} did not, and "
        f"{counts['not decided']} are not decided.",
        f"{len(CLAIMS)} 条常见说法中，本次成立 {counts['held']} 条，不成立 {counts['not held']} 条，"
        f"未决 {counts['not decided']} 条。",
    )
    return Section("claims", say("The usual table, tested", "检验常见对比表"), lead, (table,))


def _result(finding: Finding) -> str:
    return {
        "held": say("held", "成立"),
        "not held": say("not held", "不成立"),
        "not decided": say("not decided", "未决"),
    }[finding.result]


def _mark(finding: Finding) -> Mark:
    marks: dict[str, Mark] = {"held": "good", "not held": "bad"}
    return marks.get(finding.result, "open")
