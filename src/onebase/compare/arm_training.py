"""Training the arms of a comparison: the first seed of each method alone, the others together."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from onebase.adapters.full import FULL
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace, write_whole
from onebase.compare.alone import request_for
from onebase.compare.alone_process import run_alone
from onebase.compare.data import ComparisonData
from onebase.compare.options import CompareOptions
from onebase.compare.planned_arm import PlannedArm
from onebase.compare.result import Cost, CurvePoint
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.runs.run import Run, RunStore
from onebase.training.job import Job
from onebase.training.train import NothingStored, train_on


class ArmTraining:
    """Trains arms in a workspace inside the comparison's run, `folder`, and finds what earlier sessions
    trained there. `inner` is entered around every training: it handles Ctrl-C itself then; `check` is
    called before each, and may raise.
    """

    def __init__(
        self,
        folder: Path,
        job: Job,
        options: CompareOptions,
        data: ComparisonData,
        observer: Observer,
        inner: Callable[[], AbstractContextManager[None]],
        check: Callable[[], None],
    ) -> None:
        self._workspace = Workspace(folder)
        self._job = job
        self._options = options
        self._data = data
        self._observer = observer
        self._inner = inner
        self._check = check

    def train_alone(self, arms: Sequence[PlannedArm], base: Base) -> None:
        """Train those of `arms` that are to be trained alone, one after another, each in a process of its
        own on a base like `base`. Raises KeyboardInterrupt after Ctrl-C.
        """
        for arm in arms:
            if arm.alone and not (self._trained(arm) and self.cost(arm)):
                self._check()
                self._run_alone(arm, base)

    def train_together(self, arms: Sequence[PlannedArm], base: Base) -> None:
        """Train the others of `arms` in the same passes on `base`. After Ctrl-C (a KeyboardInterrupt) the
        same call continues their training.
        """
        for group in _groups([arm for arm in arms if not arm.alone]):
            if not all(map(self._trained, group)):
                self._check()
                self._train_group(group, base)

    def adapter(self, arm: PlannedArm) -> StoredAdapter | None:
        """The trained adapter; None where its loss exploded before the first evaluation."""
        versions = AdapterStore(self._workspace).list(_job(arm).task)
        return versions[-1] if versions else None

    def cost(self, arm: PlannedArm) -> Cost | None:
        """What it took alone; None if it was trained together with others."""
        file = self._cost_file(arm)
        return Cost(**json.loads(file.read_bytes())) if file.exists() else None

    def curves(self, arm: PlannedArm) -> tuple[tuple[CurvePoint, ...], tuple[CurvePoint, ...]]:
        """The validation losses and the training losses, over the tokens trained on."""
        task = _job(arm).task
        run = self._run(arm)
        validation, training, tokens = [], [], 0
        for line in run.metrics() if run else ():
            if line.get("task") != task:
                continue
            if "tokens" in line:
                tokens = line["tokens"]
                training.append(CurvePoint(tokens, line["loss"]))
            elif line.get("base_eval_loss") is not None:
                validation.append(CurvePoint(0, line["base_eval_loss"]))
            elif "eval_loss" in line:
                validation.append(CurvePoint(tokens, line["eval_loss"]))
        return tuple(validation), tuple(training)

    def clean(self, arms: Sequence[PlannedArm]) -> None:
        """Delete what is large and no longer needed once the arms are measured: the checkpoints, and the
        whole models of full fine-tuning.
        """
        for run in RunStore(self._workspace).list():
            shutil.rmtree(run.checkpoints, ignore_errors=True)
        for arm in arms:
            adapter = self.adapter(arm)
            if adapter is not None and adapter.method == FULL:
                shutil.rmtree(adapter.path, ignore_errors=True)

    def _run_alone(self, arm: PlannedArm, base: Base) -> None:
        # A training that was cut off begins again: its time is that of one whole process.
        folder = self._workspace.adapters / _job(arm).task
        shutil.rmtree(folder, ignore_errors=True)
        for run in self._runs(arm):
            shutil.rmtree(run.path, ignore_errors=True)
        request = request_for(
            self._job, _job(arm), self._options, base, self._data, self._workspace.root
        )
        with self._inner():
            cost = run_alone(request, self._observer)
        write_whole(self._cost_file(arm), json.dumps(asdict(cost)) + "\n")

    def _train_group(self, group: Sequence[PlannedArm], base: Base) -> None:
        with self._inner():
            try:
                train_on(
                    self._data.training,
                    [_job(arm) for arm in group],
                    base=base,
                    workspace=self._workspace,
                    rendered_at=self._data.rendered_at,
                    observer=self._observer,
                )
            except NothingStored as lost:
                self._observer.noted(str(lost))

    def _trained(self, arm: PlannedArm) -> bool:
        """Whether its training has ended, with a stored adapter or without."""
        if self.adapter(arm) is not None:
            return True
        return any(_job(arm).task in run.summary.get("diverged", ()) for run in self._runs(arm))

    def _run(self, arm: PlannedArm) -> Run | None:
        return next(iter(self._runs(arm)), None)

    def _runs(self, arm: PlannedArm) -> Iterator[Run]:
        """The runs that train it, newest first."""
        for run in reversed(RunStore(self._workspace).list()):
            if any(job["task"] == _job(arm).task for job in run.config["jobs"]):
                yield run

    def _cost_file(self, arm: PlannedArm) -> Path:
        return self._workspace.root / f"cost-{_job(arm).task}.json"


def _job(arm: PlannedArm) -> Job:
    assert arm.job is not None
    return arm.job


def _groups(arms: Sequence[PlannedArm]) -> Iterator[list[PlannedArm]]:
    """The arms that train in the same passes; full fine-tuning has a whole model of its own each time."""
    shared = [arm for arm in arms if arm.method != FULL]
    if shared:
        yield shared
    for arm in arms:
        if arm.method == FULL:
            yield [arm]
