"""Running a comparison with the live display, and its result as a person reads it."""

from dataclasses import asdict
from pathlib import Path

from onebase.cli.compare import CompareFlags
from onebase.cli.display import run_display
from onebase.cli.jobs import flags_given, job_fields
from onebase.cli.options import BaseFlags, JobFlags, LearningFlags
from onebase.cli.session import Session
from onebase.cli.units import aligned
from onebase.compare.compare import compare, resume_comparison
from onebase.compare.evidence import Evidence
from onebase.compare.options import CompareOptions, methods_named
from onebase.compare.report.document import Paragraph, Table
from onebase.compare.report.sections.methods import methods_section
from onebase.compare.report.sections.verdict import verdict_section
from onebase.compare.report.tables import report_json
from onebase.compare.result import Comparison
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import DEFAULT_BASE
from onebase.quantity import listed
from onebase.search.budget import Budget
from onebase.training.job import Job

Asked = tuple[Job, CompareOptions, str, str | None]


def asked_by_flags(
    task: str | None,
    data: str | None,
    config: Path | None,
    compared: CompareFlags,
    base: BaseFlags,
    learning: LearningFlags,
) -> Asked | None:
    """The job, the options, the base and its precision that the flags name; None where `config` names
    them. Raises UsageError where --task or --data is missing, and for flags beside a config.
    """
    if config is not None:
        _refuse_beside_a_config(task, data, compared, base, learning)
        return None
    if not task or not data:
        raise UsageError(
            say(
                "There is nothing to compare: --task and --data are missing.",
                "没有要对比的内容：缺少 --task 和 --data。",
            ),
            say(
                "Give both, or the config of an earlier comparison with -c.",
                "请给出两者，或用 -c 指定以前对比的配置。",
            ),
        )
    given = asdict(compared)
    methods, score, tune = given.pop("methods"), given.pop("score"), given.pop("tune")
    options = CompareOptions(
        methods=methods_named(methods.split(",")),
        user_metric=score,
        tune=None if tune is None else tokens_of(tune),
        **given,
    )
    job = Job(task=task, data=data, **job_fields(learning))
    return job, options, base.base or DEFAULT_BASE, base.precision


def _refuse_beside_a_config(
    task: str | None,
    data: str | None,
    compared: CompareFlags,
    base: BaseFlags,
    learning: LearningFlags,
) -> None:
    flags = flags_given(JobFlags(task=task, data=data), compared, base, learning)
    if flags:
        raise UsageError(
            say(f"Both -c and {listed(flags)} were given.", f"同时给出了 -c 和 {listed(flags)}。"),
            say(
                "Write these settings in a copy of the config, or leave out -c.",
                "请把这些设置写进配置的副本，或去掉 -c。",
            ),
        )


def tokens_of(text: str) -> int:
    """The tokens of --tune. Raises UsageError."""
    tokens = Budget.read(text).tokens
    if tokens is None:
        raise UsageError(
            say(f"--tune {text} is a time.", f"--tune {text} 是时间。"),
            say(
                "Give tokens, like 100k: every method gets the same training, however fast it is.",
                "请给出词元数，如 100k：无论快慢，每种方法都得到同样多的训练。",
            ),
        )
    return tokens


def run_comparison(session: Session, job: Job, options: CompareOptions, base: Base) -> Comparison:
    """Compare with the live display; an interrupted comparison of the same rows continues."""
    with run_display(session.workspace) as display:
        return compare(job, options, base=base, workspace=session.workspace, observer=display)


def resume_comparing(session: Session, run: str, base: Base) -> Comparison:
    """Continue an interrupted comparison with the live display."""
    with run_display(session.workspace) as display:
        return resume_comparison(run, base=base, workspace=session.workspace, observer=display)


def show_comparison(session: Session, comparison: Comparison) -> None:
    """The table of methods, the verdict, and where the report is."""
    evidence = Evidence.of(comparison)
    report = session.workspace.runs / comparison.run / "report" / "report.html"
    session.show(
        report_json(evidence, str(report)),
        *comparison_lines(evidence),
        say(f"Report: {report}", f"报告：{report}"),
        say(
            f"Next: onebase recommend --task {comparison.task}{session.workspace.option}",
            f"下一步：onebase recommend --task {comparison.task}{session.workspace.option}",
        ),
    )


def comparison_lines(evidence: Evidence) -> list[str]:
    """The table of methods and the verdict, as the report has them."""
    verdict = verdict_section(evidence)
    tables = [block for block in methods_section(evidence).blocks if isinstance(block, Table)]
    lines = []
    for table in tables:
        titles = [column.title for column in table.columns]
        lines += [table.caption, *aligned([titles, *(row.cells for row in table.rows)]), ""]
    lines.append(verdict.lead)
    return lines + [block.text for block in verdict.blocks if isinstance(block, Paragraph)]
