"""A comparison: every method on the user's own rows, several seeds, scored on the same held-out rows."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from onebase.adapters.full import FULL
from onebase.adapters.workspace import Workspace
from onebase.compare.answering import Answerer, Answers
from onebase.compare.arm_training import ArmTraining
from onebase.compare.data import ComparisonData, comparison_data
from onebase.compare.options import CompareOptions
from onebase.compare.planned_arm import PlannedArm, machine, planned_arms
from onebase.compare.record import RESULT, load, save
from onebase.compare.result import Arm, Comparison
from onebase.data.example import Turn
from onebase.data.yaml_file import read_yaml
from onebase.errors import CapacityError, UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import resolve
from onebase.model.sizes import sizes_of
from onebase.planning.advice import FULL_BYTES, gigabytes
from onebase.planning.free_memory import free_memory
from onebase.runs.identity import with_identity
from onebase.runs.observer import Observer
from onebase.runs.render_date import local_time, render_date_config, render_date_of
from onebase.runs.resume import interrupted_run, path_from, resumable_run
from onebase.runs.run import Run
from onebase.runs.session import RunSession, run_session
from onebase.training.job import Job
from onebase.training.run_config import as_given

_NF4 = "nf4"


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
    options = options or CompareOptions()
    workspace = workspace or Workspace()
    base = base or Base.load()
    began = local_time()
    data = comparison_data(job, options, base, began)
    config = _config(job, options, base, data)
    earlier = interrupted_run(workspace, config)
    if earlier is not None and data.template.dated:
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
    job, options = asked_for(run.config)
    data = comparison_data(job, options, base, render_date_of(run.config))
    config = _config(job, options, base, data)
    return _compare(job, options, base, data, config, workspace, run, observer)


def asked_for(config: dict[str, Any]) -> tuple[Job, CompareOptions]:
    """The job and the options in a comparison's config."""
    given, asked = dict(config["job"]), dict(config["compare"])
    for key in ("data", "held_out"):
        given[key] = None if given[key] is None else path_from(config, given[key])
    return Job(**given), CompareOptions(**{**asked, "methods": tuple(asked["methods"])})


def read_config(file: Path) -> tuple[Job, CompareOptions, str, str]:
    """The job, the options, the base and its precision in the config.yaml of a comparison. Raises
    UsageError for another file.
    """
    config = read_yaml(file)
    if not (isinstance(config, dict) and {"compare", "job", "base", "precision"} <= config.keys()):
        raise UsageError(
            say(f"{file} is not the config of a comparison.", f"{file} 不是对比实验的配置。"),
            say(
                "Give the config.yaml in the folder of a run of onebase compare.",
                "请给出 onebase compare 训练目录中的 config.yaml。",
            ),
        )
    job, options = asked_for(config)
    return job, options, path_from(config, config["base"]), config["precision"]


def _config(job: Job, options: CompareOptions, base: Base, data: ComparisonData) -> dict[str, Any]:
    arms = planned_arms(job, options, base, data)
    return with_identity(
        {
            "compare": {**asdict(options), "methods": list(options.methods)},
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "precision": base.precision.text,
            "folder": str(Path.cwd()),
            **render_date_config(data.rendered_at),
            "job": as_given(job),
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
    with run_session(config, base, workspace, job.seed, earlier=earlier, observer=observer) as run:
        arms = planned_arms(job, options, base, data)
        measurement = Measurement(run, job, options, base, data, workspace)
        run.restore(measurement, [data.template])
        run.tell(job.task, data.training.bad, data.training.notes)
        measurement.measure(arms)
        comparison = measurement.result(arms, config)
        save(comparison, run.run.path / RESULT)
        run.summary = {"task": job.task, "arms": len(comparison.arms)}
    return comparison


class Measurement:
    """The arms of a comparison as they are measured, one file each in the run's folder."""

    def __init__(
        self,
        run: RunSession,
        job: Job,
        options: CompareOptions,
        base: Base,
        data: ComparisonData,
        workspace: Workspace,
    ) -> None:
        self._run = run
        self._job = job
        self._options = options
        self._base = base
        self._data = data
        self._workspace = workspace
        self._sizes = sizes_of(resolve(base.name))
        self._began = time.monotonic(), time.process_time()
        self._folder = run.run.path / "arms"
        self._folder.mkdir(exist_ok=True)
        self._training = ArmTraining(
            run.run.path / "trained", job, options, data, run.recorder, run.interruption.paused
        )
        self._arms = 0

    @property
    def progress(self) -> dict[str, tuple[int, int]]:
        """The arms that are measured, and all."""
        return {self._job.task: (len(list(self._folder.iterdir())), self._arms)}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every arm that is measured has a file of its own."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""

    def measure(self, arms: Sequence[PlannedArm]) -> None:
        """Measure what neither this run nor an earlier one has measured."""
        self._arms = len(arms)
        missing = [arm for arm in arms if not self._known(arm)]
        self._refuse_what_does_not_fit(missing)
        four_bit = [arm for arm in missing if arm.four_bit]
        self._measure([arm for arm in missing if arm not in four_bit], self._base)
        if four_bit:
            quantized = self._base.precision.text.partition(":")[0] == _NF4
            base = self._base if quantized else Base.load(self._base.name, precision=_NF4)
            self._measure(four_bit, base)

    def result(self, arms: Sequence[PlannedArm], config: dict[str, Any]) -> Comparison:
        """The comparison, from the files of its arms."""
        measured = tuple(load(Arm, self._file(arm)) for arm in arms)
        data = self._data
        return Comparison(
            run=self._run.run.id,
            task=self._job.task,
            base=self._base.name,
            data=str(self._job.data),
            kind=data.kind,
            metric=self._options.metric or "loss",
            metrics=("loss",),
            settings="given" if self._job.set else "defaults",
            training_rows=len(data.training.train),
            validation_rows=len(data.training.held_out),
            held_out=data.held_out,
            arms=measured,
            near_duplicates=(),
            rows_sha256=data.digest(),
            config=config,
            seconds=self._run.seconds,
            cpu_seconds=time.process_time() - self._began[1],
            machine=machine(),
        )

    def _measure(self, arms: Sequence[PlannedArm], base: Base) -> None:
        """Train arms that share a base, answer with each, and keep what was measured."""
        if not arms:
            return
        trained = [arm for arm in arms if arm.job is not None]
        self._training.train(trained, base)
        answerer = Answerer(
            base, self._data, answer_tokens=self._options.answer_tokens, check=self._run.check
        )
        for arm in arms:
            save(self._answered(arm, answerer), self._file(arm))
            self._run.check()
        self._training.clean(trained)

    def _answered(self, arm: PlannedArm, answerer: Answerer) -> Arm:
        if arm.job is None:
            shown: tuple[Turn, ...] = ()
            if arm.seed is not None:
                shown = tuple(self._data.shown_examples(self._options.examples, arm.seed))
            timed = arm.seed in (None, self._job.seed)
            return self._arm(arm, answerer.bare(shown, timed=timed))
        adapter = self._training.adapter(arm)
        curve, training_losses = self._training.curves(arm)
        if adapter is None:
            return replace(
                self._arm(arm, None), diverged=True, curve=curve, training_losses=training_losses
            )
        answers = answerer.stored(adapter, timed=arm.seed == self._job.seed)
        trainable = int(adapter.metrics["trainable"])
        return replace(
            self._arm(arm, answers),
            settings=_settings_in_full(arm.job),
            trainable=trainable,
            trainable_percent=100 * trainable / self._sizes.parameters,
            adapter_bytes=adapter.bytes,
            cost=self._training.cost(arm),
            curve=curve,
            training_losses=training_losses,
            diverged=bool(adapter.metrics["diverged"]),
        )

    def _arm(self, arm: PlannedArm, answers: Answers | None) -> Arm:
        return Arm(
            method=arm.method,
            seed=arm.seed,
            settings={},
            outcomes=answers.outcomes if answers else (),
            metrics={},
            identity=arm.identity,
            run=self._run.run.id,
            load_seconds=answers.load_seconds if answers else None,
            tokens_per_second=answers.tokens_per_second if answers else None,
            forgetting=answers.forgetting if answers else {},
        )

    def _known(self, arm: PlannedArm) -> bool:
        """Whether the arm is measured: by this run, or by an earlier one, whose result is copied."""
        file = self._file(arm)
        if file.exists():
            return True
        for other in sorted(self._workspace.runs.glob(f"*/arms/{file.name}"), reverse=True):
            measured = replace(load(Arm, other), reused=True)
            save(measured, file)
            self._run.note(
                say(
                    f"{arm.method}, seed {arm.seed}: measured before on the same rows, by run "
                    f"{measured.run}.",
                    f"{arm.method}，种子 {arm.seed}：训练 {measured.run} 已在同样的数据上测量过。",
                ),
                arm=arm.identity,
            )
            return True
        return False

    def _file(self, arm: PlannedArm) -> Path:
        return self._folder / f"{arm.identity}.json"

    def _refuse_what_does_not_fit(self, arms: Sequence[PlannedArm]) -> None:
        """Raise CapacityError where a whole model can't be trained here."""
        if not any(arm.method == FULL for arm in arms):
            return
        needed = FULL_BYTES * self._sizes.parameters
        free = free_memory(self._base.device.type)
        if needed > free:
            raise CapacityError(
                say(
                    f"full takes at least {gigabytes(needed)} of memory, and {gigabytes(free)} are free.",
                    f"full 至少需要 {gigabytes(needed)} 内存，可用 {gigabytes(free)}。",
                ),
                say(
                    "Leave it out: name the other methods with --methods.",
                    "请去掉该方法：用 --methods 列出其他方法。",
                ),
            )


def _settings_in_full(job: Job) -> dict[str, Any]:
    options, settings = job.options()
    rates = job.rates()
    rate = next(iter(rates.values())) if len(rates) == 1 else rates
    return {**options.model_dump(), "learning_rate": rate, **settings}
