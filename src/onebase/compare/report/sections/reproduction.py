"""How to make the comparison again: command, configuration, versions, machine, and where the time went."""

from collections.abc import Mapping

import yaml

from onebase.compare.evidence import Evidence
from onebase.compare.report.document import Block, Column, Facts, Listing, Row, Section, Table
from onebase.compare.result import Arm, Comparison
from onebase.language import say
from onebase.quantity import MISSING, duration, listed, percent, plural

_PHASES = {
    "loading": ("loading the base in nf4", "以 nf4 加载基座"),
    "tuning": ("choosing the settings", "选择设置"),
    "training": ("training all methods together", "联合训练各方法"),
    "scoring": ("scoring the held-out rows", "评测留出数据"),
    "alone": ("training each method alone", "逐一单独训练"),
}


def reproduction_section(evidence: Evidence) -> Section:
    """The section for whoever runs it again."""
    comparison = evidence.comparison
    config = yaml.safe_dump(_plain(comparison.config), allow_unicode=True, sort_keys=False)
    blocks: list[Block] = [
        Listing(say("Command", "命令"), command(comparison)),
        Facts(tuple(_facts(comparison))),
        _time(comparison),
        Listing(say("Configuration", "配置"), config.rstrip("\n")),
        _runs(comparison),
    ]
    lead = say(
        f"The comparison took {duration(comparison.seconds)} ({duration(comparison.cpu_seconds)} of "
        "CPU time); the command below makes it again.",
        f"本次对比用时 {duration(comparison.seconds)}（CPU 时间 {duration(comparison.cpu_seconds)}）；"
        "用下面的命令可以重现。",
    )
    return Section("reproduction", say("How to reproduce it", "如何重现"), lead, tuple(blocks))


def command(comparison: Comparison) -> str:
    """The command that makes the comparison again, as it was recorded."""
    return str(comparison.config["command"])


def _seeds(comparison: Comparison) -> list[int]:
    return sorted({arm.seed for arm in comparison.arms if arm.seed is not None})


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    reused = sum(arm.reused for arm in comparison.arms)
    arms = len(comparison.arms)
    facts = [
        (say("Run", "运行"), comparison.run),
        (say("Seeds", "种子"), listed(map(str, _seeds(comparison)))),
        (
            say("Rows", "数据行"),
            say(
                f"{comparison.training_rows:,} for training, {comparison.validation_rows:,} for "
                f"validation, {len(comparison.held_out):,} held out",
                f"训练 {comparison.training_rows:,}，验证 {comparison.validation_rows:,}，"
                f"留出 {len(comparison.held_out):,}",
            ),
        ),
        (say("SHA-256 of the rows", "数据行的 SHA-256"), comparison.rows_sha256),
        (
            say("Reused", "复用"),
            say(
                f"{reused} of {plural(arms, 'result', 'results')} from earlier runs on the same rows",
                f"{arms} 个结果中有 {reused} 个来自相同数据的先前运行",
            ),
        ),
    ]
    return facts + [(str(key), _text(value)) for key, value in comparison.machine.items()]


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return listed(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return listed(map(str, value))
    return str(value)


def _time(comparison: Comparison) -> Table:
    """Where the time went: the phases, then each method trained alone."""
    phases = dict(comparison.phases)
    left = comparison.seconds - sum(phases.values())
    if phases and left > 0.5:
        phases[say("rest", "其余")] = left
    rows = [
        Row(
            (
                say(*_PHASES.get(name, (name, name))),
                duration(seconds),
                percent(100 * seconds / comparison.seconds),
            )
        )
        for name, seconds in phases.items()
    ]
    alone = [
        (arm.method, arm.seed, arm.cost)
        for arm in comparison.arms
        if arm.cost is not None and not arm.reused
    ]
    for method, seed, cost in alone:
        name = say(f"{method} alone, seed {seed}", f"单独训练 {method}，种子 {seed}")
        rows.append(Row((name, duration(cost.seconds), MISSING)))
    return Table(
        say("Where the time went", "时间去向"),
        (
            Column(say("phase", "阶段")),
            Column(say("time", "时间"), numeric=True),
            Column(say("share", "占比"), numeric=True),
        ),
        tuple(rows),
        say(
            "The trainings of a method alone are part of a phase above.",
            "单独训练的用时已包含在上面的阶段中。",
        )
        if phases and alone
        else "",
    )


def _runs(comparison: Comparison) -> Table:
    """The settings of every method, its seeds, and the runs that measured it."""
    groups: dict[tuple[str, str], list[Arm]] = {}
    for arm in comparison.arms:
        groups.setdefault((arm.method, _settings(arm.settings)), []).append(arm)
    rows = tuple(
        Row(
            (
                method,
                listed(str(arm.seed) for arm in arms if arm.seed is not None) or MISSING,
                settings,
                listed(dict.fromkeys(map(_run, arms))),
            )
        )
        for (method, settings), arms in groups.items()
    )
    return Table(
        say("Settings and runs", "设置与运行"),
        (
            Column(say("method", "方法")),
            Column(say("seeds", "种子")),
            Column(say("settings", "设置")),
            Column(say("run", "运行")),
        ),
        rows,
    )


def _run(arm: Arm) -> str:
    return arm.run + (say(" (reused)", "（复用）") if arm.reused else "")


def _settings(settings: Mapping[str, object]) -> str:
    shown = ", ".join(
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in settings.items()
        if value is not None
    )
    return shown or say("defaults", "默认")


def _plain(value: object) -> object:
    """Mappings and tuples as YAML has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
