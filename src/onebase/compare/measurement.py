"""Measuring the arms of a comparison, one file each in the run's folder."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from onebase.adapters.full import FULL
from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.compare.answering import Answerer, Answers
from onebase.compare.arm_record import load_arm, save_arm
from onebase.compare.arm_training import ArmTraining
from onebase.compare.data import ComparisonData
from onebase.compare.options import CompareOptions
from onebase.compare.planned_arm import PlannedArm
from onebase.compare.result import Arm, Cost
from onebase.compare.tuning import Tuning
from onebase.data.example import Turn
from onebase.errors import CapacityError, CorruptFileError
from onebase.language import say
from onebase.model.base import Base
from onebase.model.fetch import resolve
from onebase.model.sizes import sizes_of
from onebase.planning.advice import FULL_BYTES
from onebase.planning.free_memory import free_memory
from onebase.quantity import size
from onebase.runs.observer import JobStart
from onebase.runs.session import RunSession
from onebase.training.job import Job

_NF4 = "nf4"


class Measurement:
    """The arms of a comparison while they are measured; the state of its run.

    `phases` has the seconds of each phase over all sessions, `cpu_seconds` the processor time of this
    process; both are in the checkpoints.
    """

    def __init__(
        self,
        run: RunSession,
        job: Job,
        options: CompareOptions,
        base: Base,
        data: ComparisonData,
        workspace: Workspace,
        arms: Sequence[PlannedArm],
    ) -> None:
        self.phases: dict[str, float] = {}
        self._cpu_seconds = -time.process_time()  # of this process alone, in this session
        self._run = run
        self._job = job
        self._options = options
        self._base = base
        self._data = data
        self._workspace = workspace
        self._parameters = sizes_of(resolve(base.name)).parameters
        self._folder = run.run.path / "arms"
        self._folder.mkdir(exist_ok=True)
        self._training = ArmTraining(
            run.run.path / "trained",
            job,
            options,
            data,
            run.recorder,
            run.interruption.paused,
            run.check,
        )
        self._tuning: Tuning | None = None
        if options.tune is not None:
            self._tuning = Tuning(
                run.run.path,
                options.tune,
                data,
                run.recorder,
                run.interruption.paused,
                run.check,
            )
        self._arms = arms

    @property
    def progress(self) -> Mapping[str, tuple[int, int]]:
        """The arms that are measured, and all."""
        measured = sum(self._file(arm).exists() for arm in self._arms)
        return {self._job.task: (measured, len(self._arms))}

    @property
    def cpu_seconds(self) -> float:
        """The processor time so far, of all sessions and of the processes of trainings alone."""
        costs = [self._training.cost(arm) for arm in self._arms if arm.alone]
        alone = sum(cost.cpu_seconds for cost in costs if cost is not None)
        return self._cpu_seconds + time.process_time() + alone

    def state_dict(self) -> dict[str, Any]:
        """What the time went into; the arms that are measured have files of their own."""
        return {"phases": self.phases, "cpu_seconds": self._cpu_seconds + time.process_time()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.phases = dict(state["phases"])
        self._cpu_seconds += state["cpu_seconds"]

    def measure(self) -> tuple[Arm, ...]:
        """Every arm as it was measured: by this run now, by an earlier session of it, or by an earlier
        run on the same rows. Raises CapacityError where a whole model can't be trained here.
        """
        missing = [arm for arm in self._arms if not self._known(arm)]
        self._require_memory(missing)
        four_bit = [arm for arm in missing if arm.four_bit]
        self._measure([arm for arm in missing if not arm.four_bit], self._base)
        if four_bit:
            self._measure(four_bit, self._four_bit_base())
        return tuple(load_arm(self._file(arm)) for arm in self._arms)

    def _measure(self, arms: Sequence[PlannedArm], base: Base) -> None:
        """Train arms that share a base, answer with each, and keep what was measured."""
        if not arms:
            return
        arms = [self._tuned(arm, base) for arm in arms]
        trained = [arm for arm in arms if arm.job is not None]
        with self._phase("alone"):
            self._training.train_alone(trained, base)
        with self._phase("training"):
            self._training.train_together(trained, base)
        with self._phase("scoring"):
            tokens = self._options.answer_tokens
            answerer = Answerer(
                base, self._data, answer_tokens=tokens, check=self._run.check, note=self._run.note
            )
            title = say("scoring", "评分")
            self._run.recorder.started([JobStart("scoring", title, 0, len(arms))])
            for number, arm in enumerate(arms, start=1):
                save_arm(self._measured(arm, answerer), self._file(arm))
                self._run.recorder.step("scoring", number, {"arm": _name(arm)})
                self._run.check()
        self._training.clean(trained)

    def _tuned(self, arm: PlannedArm, base: Base) -> PlannedArm:
        """The arm with the settings of its method's race, where there is one."""
        if self._tuning is None or arm.job is None:
            return arm
        with self._phase("tuning"):
            raced = replace(arm.job, seed=self._job.seed)
            settings = self._tuning.settings(raced, base, arm.tuning)
        return replace(arm, job=replace(arm.job, set=settings))

    def _measured(self, arm: PlannedArm, answerer: Answerer) -> Arm:
        timed = arm.seed in (None, self._job.seed)
        if arm.job is None:
            return self._arm(arm, answerer.bare(self._shown(arm), timed=timed))
        curve, training_losses = self._training.curves(arm)
        adapter = self._training.adapter(arm)
        answers = None if adapter is None else answerer.stored(adapter, timed=timed)
        measured = replace(
            self._arm(arm, answers),
            settings=_settings_in_full(arm.job),
            cost=self._cost(arm),
            curve=curve,
            training_losses=training_losses,
            diverged=adapter is None,
        )
        return measured if adapter is None else self._with_sizes(measured, adapter)

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

    def _with_sizes(self, arm: Arm, adapter: StoredAdapter) -> Arm:
        trainable = int(adapter.metrics["trainable"])
        return replace(
            arm,
            trainable=trainable,
            trainable_percent=100 * trainable / self._parameters,
            adapter_bytes=adapter.bytes,
            diverged=bool(adapter.metrics["diverged"]),
        )

    def _cost(self, arm: PlannedArm) -> Cost | None:
        return self._training.cost(arm) if arm.alone else None

    def _shown(self, arm: PlannedArm) -> Sequence[tuple[Turn, ...]]:
        """The examples in the prompt of a row of the base; none for the base alone."""
        if arm.seed is None:
            return ()
        return self._data.shown_examples(self._options.examples, arm.seed)

    def _four_bit_base(self) -> Base:
        if self._base.precision.text.partition(":")[0] == _NF4:
            return self._base
        with self._phase("loading"):
            return Base.load(self._base.name, precision=_NF4)

    def _known(self, arm: PlannedArm) -> bool:
        """Whether the arm is measured: by this run, or by an earlier one, whose result is copied."""
        file = self._file(arm)
        if file.exists():
            return True
        for other in sorted(self._workspace.runs.glob(f"*/arms/{file.name}"), reverse=True):
            try:
                measured = replace(load_arm(other), reused=True)
            except CorruptFileError as damaged:
                self._run.note(damaged.message)
                continue
            save_arm(measured, file)
            name = _name(arm)
            self._run.note(
                say(
                    f"{name}: run {measured.run} has measured it on the same rows; its result is used.",
                    f"{name}：训练 {measured.run} 已在同样的数据上测量过，直接使用其结果。",
                ),
                arm=arm.identity,
            )
            return True
        return False

    def _file(self, arm: PlannedArm) -> Path:
        return self._folder / f"{arm.identity}.json"

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - began
            self._run.save()

    def _require_memory(self, arms: Sequence[PlannedArm]) -> None:
        """Raise CapacityError where a whole model can't be trained here."""
        needed = FULL_BYTES * self._parameters
        free = free_memory(self._base.device.type)
        if needed > free and any(arm.method == FULL for arm in arms):
            raise CapacityError(
                say(
                    f"full takes at least {size(needed)} of memory, and {size(free)} are free.",
                    f"full 至少需要 {size(needed)} 内存，可用 {size(free)}。",
                ),
                say(
                    "Name the other methods with --methods.",
                    "请用 --methods 列出其他方法。",
                ),
            )


def _name(arm: PlannedArm) -> str:
    if arm.seed is None:
        return arm.method
    return say(f"{arm.method}, seed {arm.seed}", f"{arm.method}，种子 {arm.seed}")


def _settings_in_full(job: Job) -> dict[str, Any]:
    options, settings = job.options()
    rates = job.rates()
    rate: Any = next(iter(rates.values())) if len(rates) == 1 else rates
    return {**options.model_dump(), "learning_rate": rate, **settings}
