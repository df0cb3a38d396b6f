"""A comparison: every method on the user's own rows, several seeds, scored on the same held-out rows."""

import json
import shlex
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from onebase.adapters.full import FULL, require_whole_weights
from onebase.adapters.methods import require_trainable
from onebase.adapters.store import check_task_name
from onebase.adapters.workspace import Workspace
from onebase.compare.data import ComparisonData, comparison_data
from onebase.compare.measurement import Measurement
from onebase.compare.metrics.scoring import Scoring
from onebase.compare.near_duplicates import near_duplicates, near_duplicates_note
from onebase.compare.options import CompareOptions, methods_named
from onebase.compare.planned_arm import machine, planned_arms
from onebase.compare.record import save
from onebase.compare.report.report import write_report
from onebase.compare.result import Comparison, Settings
from onebase.data.yaml_file import read_yaml
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import DEFAULT_BASE
from onebase.quantity import listed
from onebase.runs.identity import as_yaml_reads, base_config, identity_of, with_identity
from onebase.runs.observer import Observer
from onebase.runs.render_date import local_time, render_date_config, render_date_of
from onebase.runs.resume import interrupted_run, path_from, resumable_run
from onebase.runs.run import Run
from onebase.runs.session import run_session
from onebase.training.job import Job, check_seed
from onebase.training.run_config import as_given

_T = TypeVar("_T", Job, CompareOptions)
_SETTINGS = "settings_sha256"  # a key of the config


def compare(
    job: Job,
    options: CompareOptions | None = None,
    *,
    base: Base | None = None,
    workspace: Workspace | None = None,
    observer: Observer | None = None,
) -> Comparison:
    """Train every method of `options` on `job`'s rows and score all of them, and the bare base, on the
    same held-out rows. `job.method` is ignored; `job.set` holds for the methods that have such options.

    Where the newest comparison of the same rows and settings was interrupted, it continues. Arms that an
    earlier comparison of this workspace has measured are used again. Raises UsageError or DataError
    before the first step; CapacityError for `full` where its weights alone don't fit; Interrupted after
    Ctrl-C.
    """
    check_task_name(job.task)
    check_seed(job.seed)
    options = options or CompareOptions()
    workspace = workspace or Workspace()
    base = base or Base.load()
    began = local_time()
    data = comparison_data(job, options, base, began)
    config = _config(job, options, base, data)
    earlier = interrupted_run(workspace, config)
    if earlier is not None and data.template.dated:  # the rows as it began with them
        data = comparison_data(job, options, base, render_date_of(earlier.config))
        config = _config(job, options, base, data)
    return _compare(job, options, base, data, config, workspace, earlier, observer)


def resume_comparison(
    id: str,
    *,
    base: Base,
    workspace: Workspace,
    observer: Observer | None = None,
) -> Comparison:
    """Continue the interrupted comparison `id`. Raises UsageError for a run that can't be resumed."""
    run = resumable_run(workspace, id)
    job, options = asked_for(run.config, run.path / "config.yaml")
    data = comparison_data(job, options, base, render_date_of(run.config))
    config = _config(job, options, base, data)
    _require_same(run, config)
    return _compare(job, options, base, data, config, workspace, run, observer)


def _require_same(run: Run, config: dict[str, Any]) -> None:
    """Raise UsageError where an interrupted comparison would continue on other rows or settings."""
    before = run.config
    now = {**config, _SETTINGS: _settings_hash(before["compare"], before["job"])}
    words = {
        "base_content": say("the weights of the base", "基座的权重"),
        "precision": say("the precision of the base", "基座的精度"),
        "rows_sha256": say("its rows", "数据"),
        _SETTINGS: say("the settings in its config.yaml", "config.yaml 中的设置"),
    }
    changed = [words[key] for key in words if before.get(key) != now[key]]
    if changed:
        raise UsageError(
            say(
                f"Comparison {run.id} can't be resumed: changed since it began: {listed(changed)}.",
                f"对比 {run.id} 无法继续，开始之后发生了变化：{listed(changed)}。",
            ),
            say(
                "Restore its data and config.yaml, or start again with onebase compare.",
                "请恢复其数据和 config.yaml，或用 onebase compare 重新开始。",
            ),
        )


def _settings_hash(options: dict[str, Any], job: dict[str, Any]) -> str:
    """A hash of what a comparison's config.yaml asks for, which tells an edited one."""
    return identity_of([options, job])


def asked_for(config: dict[str, Any], file: Path) -> tuple[Job, CompareOptions]:
    """The job and the options in the config of a comparison, which was read from `file`. Raises
    UsageError for another config.
    """
    job = _typed(Job, config, "job", file)
    options = _typed(CompareOptions, config, "compare", file)
    held_out, metric = job.held_out, options.user_metric
    if metric is not None:
        place, colon, function = metric.rpartition(":")
        metric = path_from(config, place) + colon + function
    return (
        replace(
            job,
            data=path_from(config, str(job.data)),
            held_out=None if held_out is None else path_from(config, str(held_out)),
        ),
        replace(options, methods=methods_named(options.methods), user_metric=metric),
    )


def _typed(kind: type[_T], config: object, key: str, file: Path) -> _T:
    """The part `key` of a config as a `kind`. Raises UsageError for other keys and types."""
    part = config.get(key) if isinstance(config, dict) else None
    if not isinstance(part, dict):
        raise _no_config(file, say(f"it has no {key}", f"缺少 {key}"))
    names = [field.name for field in fields(kind)]
    for name in part:
        if name not in names:
            raise _no_config(file, str(unknown(f"key in {key}", f"{key} 的键", name, names)))
    try:  # strict JSON takes mappings and lists, and no text for a number
        return TypeAdapter(kind).validate_json(json.dumps(part, default=str), strict=True)
    except ValidationError as error:
        raise _no_config(file, _first_reason(key, error)) from error


def _first_reason(key: str, error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(item) for item in (key, *first["loc"]))
    return f"{place}: {first['msg']}"


def _no_config(file: Path, reason: str) -> UsageError:
    reason = reason.rstrip(".。")
    return UsageError(
        say(
            f"{file} is not the config of a comparison: {reason}.",
            f"{file} 不是对比的配置：{reason}。",
        ),
        say(
            "Give the config.yaml in the folder of a run of onebase compare.",
            "请给出 onebase compare 训练目录中的 config.yaml。",
        ),
    )


def read_config(file: Path) -> tuple[Job, CompareOptions, str, str | None]:
    """The job, the options, the base and its precision in the config.yaml of a comparison. Raises
    UsageError for another file.
    """
    config = read_yaml(file)
    job, options = asked_for(config, file)
    base, precision = config.get("base", DEFAULT_BASE), config.get("precision")
    for key, value in (("base", base), ("precision", precision)):
        if not isinstance(value, str | None):
            raise _no_config(file, f"{key}: {value!r}")
    return job, options, path_from(config, base or DEFAULT_BASE), precision


def _config(job: Job, options: CompareOptions, base: Base, data: ComparisonData) -> dict[str, Any]:
    arms = planned_arms(job, options, base, data)
    asked = as_yaml_reads(
        {"compare": {**asdict(options), "methods": list(options.methods)}, "job": as_given(job)}
    )
    return with_identity(
        {
            "compare": asked["compare"],
            **base_config(base),
            "base_content": base.content,  # unlike the fingerprint, another one after a merge
            **render_date_config(data.rendered_at),
            "rows_sha256": data.digest(),
            _SETTINGS: _settings_hash(asked["compare"], asked["job"]),
            "job": asked["job"],
        },
        [arm.identity for arm in arms] + [options.metric, options.user_metric],
    )


def _compare(
    job: Job,
    options: CompareOptions,
    base: Base,
    data: ComparisonData,
    config: dict[str, Any],
    workspace: Workspace,
    earlier: Run | None,
    observer: Observer | None,
) -> Comparison:
    scoring = Scoring.of(data, options.user_metric)
    metric = scoring.deciding(options.metric)
    seen = (*data.training.train_examples, *data.training.held_out_examples)
    duplicates = near_duplicates(data.examples, seen, data.kind)
    require_trainable(base)
    if FULL in options.methods:
        require_whole_weights(base)
    with run_session(config, base, workspace, job.seed, earlier=earlier, observer=observer) as run:
        arms = planned_arms(job, options, base, data)
        measurement = Measurement(run, job, options, base, data, workspace, arms)
        run.restore(measurement, [data.template])
        run.tell(job.task, data.training.bad, data.training.notes)
        if duplicates:
            run.note(near_duplicates_note(duplicates, len(data.rows)))
        measured = measurement.measure()
        comparison = Comparison(
            run=run.run.id,
            task=job.task,
            base=base.name,
            data=str(job.data),
            kind=data.kind,
            metric=metric,
            metrics=scoring.metrics,
            settings=_source_of_settings(job, options),
            training_rows=len(data.training.train),
            validation_rows=len(data.training.held_out),
            held_out=data.held_out,
            arms=tuple(map(scoring.scored, measured)),
            near_duplicates=duplicates,
            rows_sha256=data.digest(),
            config={**config, "command": _command(run.run, workspace)},
            seconds=run.seconds,
            cpu_seconds=measurement.cpu_seconds,
            machine=machine(),
            lower_is_better=scoring.lower_is_better,
            phases=measurement.phases,
        )
        save(comparison, run.run.path)
        report = write_report(comparison, run.run.path / "report")
        run.summary = {"task": job.task, "report": str(report)}
    return comparison


def _command(run: Run, workspace: Workspace) -> str:
    """The command that makes the comparison again."""
    config = shlex.quote(str(run.path / "config.yaml"))
    return f"onebase compare -c {config}{workspace.option}"


def _source_of_settings(job: Job, options: CompareOptions) -> Settings:
    if options.tune is not None:
        return "tuned"
    return "given" if job.set else "defaults"
