"""When a run is saved, and how it is restored."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from onebase.language import say
from onebase.runs.checkpoint import Checkpoints
from onebase.runs.recorder import RunRecorder
from onebase.runs.run import Run, cut, size_of

SAVE_SECONDS = 60.0
SAVE_LIMIT = 2
# Saves that take longer than a second get this share of the time: whole models are GB, and nine tenths
# of the time should go into training.
QUICK_SAVE, SAVING_SHARE = 1.0, 0.1


class Stateful(Protocol):
    """The state of a training, saved in checkpoints."""

    @property
    def progress(self) -> Mapping[str, tuple[int, int]]:
        """The steps of each task: those done, and all."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""


class Checkpointer:
    """Saves what a run trains between two steps: after an evaluation, and every `save_seconds`.

    A checkpoint holds the state of `trained`, the random state of torch, and how much of the run's
    logs belongs to it. `config` is what the run was asked for.
    """

    def __init__(
        self,
        run: Run,
        config: dict[str, Any],
        recorder: RunRecorder,
        device: torch.device,
        *,
        save_seconds: float,
        save_limit: int,
    ) -> None:
        self.trained: Stateful | None = None
        self._run = run
        self._config = config
        self._recorder = recorder
        self._device = device
        self._interval = save_seconds
        self._checkpoints = Checkpoints(run.checkpoints, save_limit)
        self._began = time.monotonic()
        self._earlier_seconds = 0.0
        self._saved_at = -math.inf
        self._cost = 0.0
        self._refused = False
        self.up_to_date = False

    @property
    def seconds(self) -> float:
        """How long the run has taken, all its sessions together."""
        return self._earlier_seconds + time.monotonic() - self._began

    def restore(
        self, trained: Stateful, check: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """Continue from the newest good checkpoint, or from the beginning where there is none. `check`
        refuses the config of a checkpoint by an error.
        """
        newest = self._checkpoints.newest()
        state = newest.state or {}
        if state and check is not None:
            check(state["config"])
        cut(self._run.metrics_file, state.get("metrics_bytes", 0))
        cut(self._run.samples, state.get("samples_bytes", math.inf if state else 0))
        if state:
            self._load(trained, state)
        for name, reason in newest.damaged.items():
            text = say(
                f"Checkpoint {name} of run {self._run.id} is damaged ({reason}) and is skipped.",
                f"训练 {self._run.id} 的检查点 {name} 已损坏（{reason}），将跳过。",
            )
            self._recorder.noted(text, checkpoint=name, damaged=reason)
            self._checkpoints.drop(name)
        if newest.half_written:
            text = say(
                f"A checkpoint of run {self._run.id} was written only in part and is skipped.",
                f"训练 {self._run.id} 有一个检查点未写完，将跳过。",
            )
            self._recorder.noted(text, half_written=newest.half_written)
        self._recorder.noted(
            self._continues(newest.name, trained.progress),
            resumed_from=newest.name,
            steps=_steps(trained),
        )

    def due(self, *, evaluated: bool) -> bool:
        """Whether to save now, between two steps; `evaluated`: an evaluation has just ended."""
        since = time.monotonic() - self._saved_at
        wait = self._cost / SAVING_SHARE if self._cost > QUICK_SAVE else 0.0
        return since >= wait and (evaluated or since >= self._interval)

    def save(self) -> None:
        """Save the run as it is now. If the disk is full, the user is told and training continues."""
        if self.trained is None:
            return
        began, self.up_to_date = time.monotonic(), False
        try:
            self._recorder.flush()
            self._checkpoints.save(self._state(self.trained))
            self.up_to_date, self._refused = True, False
        except OSError as error:
            if not self._refused:
                self._refused = True
                self._note_refusal(error.strerror or str(error))
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - began
        if self.up_to_date:
            self._recorder.saved(_steps(self.trained))

    def keep_one(self) -> None:
        """The run has ended: delete all checkpoints but the newest."""
        self._checkpoints.thin(1)

    def _state(self, trained: Stateful) -> dict[str, Any]:
        on_gpu = self._device.type == "cuda"
        return {
            "config": self._config,
            "machine": self._machine(),
            "seconds": self.seconds,
            "metrics_bytes": self._run.mark(),
            "samples_bytes": size_of(self._run.samples),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if on_gpu else [],
            "state": trained.state_dict(),
        }

    def _load(self, trained: Stateful, state: dict[str, Any]) -> None:
        # Formats 1 and 2 held a training's state at the top, and no random state of an alignment.
        trained.load_state_dict(state.get("state", state))
        self._earlier_seconds = state["seconds"]
        if "random" not in state:
            return
        torch.set_rng_state(state["random"])
        now, before = self._machine(), state["machine"]
        if now == before and state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        changed = [
            f"{name} {before[name]} -> {now[name]}" for name in now if now[name] != before[name]
        ]
        if changed:
            listed = ", ".join(changed)
            text = say(
                f"Run {self._run.id} continues under other conditions ({listed}): the results are "
                "correct, but their last digits may differ.",
                f"训练 {self._run.id} 在不同条件下继续（{listed}）：结果正确，但数值末位可能不同。",
            )
            self._recorder.noted(text, changed=changed)

    def _machine(self) -> dict[str, Any]:
        """The conditions, besides the jobs, that change the last digits of a result."""
        return {
            "torch": str(torch.__version__),
            "device": self._device.type,
            "threads": torch.get_num_threads(),
            "GPUs": torch.cuda.device_count() if self._device.type == "cuda" else 0,
        }

    def _continues(self, checkpoint: str | None, progress: Mapping[str, tuple[int, int]]) -> str:
        run = self._run.id
        if checkpoint is None:
            return say(
                f"Run {run} has no checkpoint to continue from; it starts from the beginning.",
                f"训练 {run} 没有可用的检查点，从头开始。",
            )
        listed = ", ".join(f"{task} {step}/{total}" for task, (step, total) in progress.items())
        return say(
            f"Run {run} continues from checkpoint {checkpoint} (steps: {listed}).",
            f"训练 {run} 从检查点 {checkpoint} 继续（步数：{listed}）。",
        )

    def _note_refusal(self, reason: str) -> None:
        text = say(
            f"A checkpoint of run {self._run.id} can't be saved: {reason}. The last good one is kept "
            f"and training continues: free some disk space at {self._run.path}.",
            f"无法保存训练 {self._run.id} 的检查点：{reason}。上一个完好的检查点不受影响，"
            f"训练继续进行：请清理 {self._run.path} 所在磁盘的空间。",
        )
        self._recorder.noted(text, checkpoint=None, refused=reason)


def _steps(trained: Stateful) -> dict[str, int]:
    return {task: step for task, (step, _) in trained.progress.items()}
