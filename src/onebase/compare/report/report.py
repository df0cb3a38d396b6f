"""The report of a comparison: Markdown, one HTML page, CSV, JSON and every outcome, in its run's folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from onebase.adapters.workspace import write_whole
from onebase.compare.evidence import Evidence
from onebase.compare.metrics.metric_name import metric_name
from onebase.compare.report.document import Document, Facts, Section
from onebase.compare.report.markdown import PLOTS, markdown
from onebase.compare.report.page import page
from onebase.compare.report.sections.answers import answers_section
from onebase.compare.report.sections.claims import claims_section
from onebase.compare.report.sections.confusion import confusion_section
from onebase.compare.report.sections.methods import methods_section
from onebase.compare.report.sections.near_duplicates import near_duplicates_section
from onebase.compare.report.sections.pairs import pairs_section
from onebase.compare.report.sections.plots import plots_section
from onebase.compare.report.sections.reproduction import reproduction_section
from onebase.compare.report.sections.tokens import tokens_section
from onebase.compare.report.sections.verdict import verdict_section
from onebase.compare.report.tables import arms_csv, outcomes_jsonl, report_json, summary_csv
from onebase.compare.result import Comparison
from onebase.errors import FolderError
from onebase.language import Language, language, say, set_language
from onebase.quantity import listed

_LANGUAGES: dict[Language, str] = {"en": "English", "zh": "中文"}


def write_report(
    comparison: Comparison,
    folder: Path,
    languages: Sequence[Language] | None = None,
    *,
    evidence: Evidence | None = None,
) -> Path:
    """Write the report into `folder`; the path of its page.

    The first of `languages` has report.md and report.html, another its name in between
    (report.zh.html); by default the current language, then the other. Nothing is written before all of
    it is made. Raises FolderError where it can't be written.
    """
    evidence = evidence or Evidence.of(comparison)
    chosen = tuple(dict.fromkeys(languages or (language(), *_LANGUAGES)))
    names = {one: "report" if one == chosen[0] else f"report.{one}" for one in chosen}
    report = folder / "report.html"
    value = report_json(evidence, str(report))
    files = {
        "arms.csv": arms_csv(comparison),
        "summary.csv": summary_csv(evidence),
        "report.json": json.dumps(value, ensure_ascii=False, indent=2) + "\n",
        "outcomes.jsonl": outcomes_jsonl(comparison),
    }
    current = language()
    try:
        for one, name in names.items():
            set_language(one)
            others = tuple(
                (_LANGUAGES[other], file) for other, file in names.items() if other != one
            )
            document = report_document(evidence, others)
            suffix = name.removeprefix("report")
            files |= {f"{PLOTS}/{plot.name}{suffix}.svg": plot.svg for plot in document.plots}
            files[f"{name}.md"] = markdown(document, suffix)
            files[f"{name}.html"] = page(document)
    finally:
        set_language(current)
    _write(folder, files)
    return report


def report_document(evidence: Evidence, others: tuple[tuple[str, str], ...] = ()) -> Document:
    """The whole report in the current language."""
    sections: list[Section | None] = [
        verdict_section(evidence),
        methods_section(evidence),
        pairs_section(evidence),
        plots_section(evidence),
        tokens_section(evidence),
        answers_section(evidence),
        confusion_section(evidence),
        near_duplicates_section(evidence),
        claims_section(evidence),
        reproduction_section(evidence),
    ]
    comparison = evidence.comparison
    title = say(f"Methods compared on “{comparison.task}”", f"方法对比：“{comparison.task}”")
    return Document(
        language(),
        title,
        _facts(evidence),
        tuple(section for section in sections if section is not None),
        others,
    )


def _facts(evidence: Evidence) -> Facts:
    comparison = evidence.comparison
    kind = {
        "classification": say("classification", "分类"),
        "generation": say("generation", "生成"),
    }[comparison.kind]
    settings = {
        "defaults": say("each method's defaults", "各方法的默认设置"),
        "given": say("given by the user", "用户给定"),
        "tuned": say("tuned, the same budget for each method", "调参所得，各方法预算相同"),
    }[comparison.settings]
    seeds = len({arm.seed for arm in comparison.arms if arm.seed is not None})
    return Facts(
        (
            (say("Base", "基座"), comparison.base),
            (say("Data", "数据"), comparison.data),
            (say("Kind", "任务类型"), kind),
            (say("Metric that decides", "判定指标"), metric_name(evidence.metric)),
            (
                say("Held-out rows", "留出数据"),
                say(
                    f"{evidence.summary.rows:,} ({evidence.summary.clusters:,} different inputs)",
                    f"{evidence.summary.rows:,} 行（{evidence.summary.clusters:,} 个不同输入）",
                ),
            ),
            (
                say("Methods", "方法"),
                listed(name for name in evidence.methods if evidence.methods[name].trained),
            ),
            (say("Seeds", "种子数"), str(seeds)),
            (say("Settings", "设置"), settings),
        )
    )


def _write(folder: Path, files: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PLOTS).mkdir(exist_ok=True)
        for name, text in files.items():
            write_whole(folder / name, text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FolderError(
            say(
                f"The report can't be written to {folder}: {reason}.",
                f"无法将报告写入 {folder}：{reason}。",
            ),
            say(
                "Free space on its disk or check its permissions, then run the command again: the "
                "measurements are kept.",
                "请清理磁盘空间或检查权限，然后再次运行该命令：测量结果已保留。",
            ),
        ) from error
