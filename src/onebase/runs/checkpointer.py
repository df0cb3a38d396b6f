"""Keeping a run's progress: when it is saved, what a checkpoint holds, going on from one."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from onebase.language import say
from onebase.runs.checkpoint import Checkpoints
from onebase.runs.interruption import Interruption
from onebase.runs.recorder import RunRecorder
from onebase.runs.render_date import date_kept
from onebase.runs.run import Run
from onebase.training.job_state import Learner
from onebase.training.run_config import require_same

# A save that takes more than a second waits until ten times as long has passed since the last:
# whole models are GB, and nine tenths of the time should go into learning.
_QUICK = 1.0
_SHARE = 10.0


class RunKeeper:
    """Saves the whole run, all jobs at one moment, between two joint steps: after an evaluation,
    every `save_seconds`, and when `interruption` asks to stop, which then raises
    KeyboardInterrupt.

    `config` is what the run was asked for; `base_losses` come with the first checkpoint.
    """

    def __init__(
        self,
        run: Run,
        learners: Sequence[Learner],
        config: dict[str, Any],
        recorder: RunRecorder,
        interruption: Interruption,
    ) -> None:
        self._run = run
        self._learners = learners
        self._config = config
        self._recorder = recorder
        self._interruption = interruption
        self._interval = min(learner.options.save_seconds for learner in learners)
        limit = max(learner.options.save_limit for learner in learners)
        self._checkpoints = Checkpoints(run.checkpoints, limit)
        self._told: set[str] = set()  # of the jobs that trouble ended
        self._still: set[str] = set()  # of those without a gradient
        self._began = time.monotonic()
        self._earlier = 0.0
        self._saved_at = -float("inf")
        self._cost = 0.0
        self._saved = False
        self._refused = False
        self.base_losses: dict[str, float] | None = None

    @property
    def seconds(self) -> float:
        """How long the run has been at work, all its sessions together."""
        return self._earlier + time.monotonic() - self._began

    def restore(self) -> None:
        """Go on from the newest good checkpoint, or from the beginning, and say which.

        Raises UsageError where the run was asked for something else than these learners.
        """
        found = self._checkpoints.newest()
        state = found.state or {}
        if found.state is not None:
            require_same(self._run.id, state["config"], self._config)
        self._run.cut(state.get("metrics_bytes", 0))
        if found.state is not None:
            self._load(state)
        for name, reason in found.damaged.items():
            text = say(
                f"Checkpoint {name} of run {self._run.id} is damaged ({reason}) and left out.",
                f"训练 {self._run.id} 的检查点 {name} 已损坏（{reason}），不予使用。",
            )
            self._recorder.noted(text, checkpoint=name, damaged=reason)
            self._checkpoints.drop(name)
        if found.half_written:
            text = say(
                f"A checkpoint of run {self._run.id} was only half written and is left out.",
                f"训练 {self._run.id} 有一个检查点只写了一半，不予使用。",
            )
            self._recorder.noted(text, half_written=found.half_written)
        self._recorder.noted(
            self._goes_on(found.name),
            resumed_from=found.name,
            steps={learner.job.task: learner.step for learner in self._learners},
        )
        kept = [text for one in self._learners for text in date_kept(self._run, one.template)]
        for text in dict.fromkeys(kept):
            self._recorder.noted(text)

    def between(self, *, judged: bool) -> None:
        """Between two joint steps, `judged` after an evaluation."""
        self._saved = False
        for learner in self._learners:
            if learner.trouble and learner.job.task not in self._told:
                self._tell_of_trouble(learner)
            if learner.still and learner.job.task not in self._still:
                self._tell_of_no_gradient(learner)
        self.check()
        since = time.monotonic() - self._saved_at
        wait = _SHARE * self._cost if self._cost > _QUICK else 0.0
        if since >= wait and (judged or since >= self._interval):
            self.save()

    def check(self) -> None:
        """Save and stop, if that is asked for. The learners stand between two steps."""
        if self._interruption.asked:
            self.save()
            raise KeyboardInterrupt

    def close(self) -> None:
        """Save the end of the training, before its adapters are stored."""
        if not self._saved:
            self.save()

    def finish(self) -> None:
        """The run has come to its end: one checkpoint is enough."""
        self._checkpoints.thin(1)

    def save(self) -> None:
        """Save the run as it is now; where the disk refuses, say so and go on."""
        began = time.monotonic()
        try:
            self._recorder.write()
            self._checkpoints.save(self._state())
            self._saved, self._refused = True, False
        except OSError as error:
            if not self._refused:
                self._refused = True
                self._tell_of_refusal(error.strerror or str(error))
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - began

    def _state(self) -> dict[str, Any]:
        on_gpu = self._learners[0].base.device.type == "cuda"
        return {
            "config": self._config,
            "machine": self._machine(),
            "seconds": self.seconds,
            "metrics_bytes": self._run.mark(),
            "base_losses": self.base_losses,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if on_gpu else [],
            "jobs": {learner.job.task: learner.state() for learner in self._learners},
        }

    def _load(self, state: dict[str, Any]) -> None:
        for learner in self._learners:
            learner.load(state["jobs"][learner.job.task])
            if learner.trouble:
                self._told.add(learner.job.task)
            if learner.still:
                self._still.add(learner.job.task)
        self._earlier = state["seconds"]
        self.base_losses = state["base_losses"]
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
                f"Run {self._run.id} goes on under other conditions ({listed}): correctly, but the "
                "last digits may differ.",
                f"训练 {self._run.id} 在不同条件下继续（{listed}）：结果正确，但数值末位可能不同。",
            )
            self._recorder.noted(text, changed=changed)

    def _machine(self) -> dict[str, Any]:
        """What the last digits of a result depend on, beside the jobs."""
        base = self._learners[0].base
        return {
            "torch": str(torch.__version__),
            "device": base.device.type,
            "threads": torch.get_num_threads(),
            "GPUs": torch.cuda.device_count() if base.device.type == "cuda" else 0,
        }

    def _goes_on(self, checkpoint: str | None) -> str:
        run = self._run.id
        if checkpoint is None:
            return say(
                f"Run {run} has no checkpoint to go on from: it starts from the beginning.",
                f"训练 {run} 没有可用的检查点，从头开始。",
            )
        steps = ", ".join(
            f"{learner.job.task} {learner.step}/{learner.total_steps}" for learner in self._learners
        )
        return say(
            f"Run {run} goes on from checkpoint {checkpoint} (steps: {steps}).",
            f"训练 {run} 从检查点 {checkpoint} 继续（步数：{steps}）。",
        )

    def _tell_of_trouble(self, learner: Learner) -> None:
        task, step, best = learner.job.task, learner.step, learner.best_step
        self._told.add(task)
        fact = (
            say("its loss has exploded", "其损失已发散")
            if learner.trouble == "exploded"
            else say("its loss is no longer finite", "其损失已不是有限值")
        )
        kept = (
            say(f"its best state, of step {best}, is kept", f"保留其最佳状态（第 {best} 步）")
            if best
            else say("there is nothing of it to keep", "没有可保留的状态")
        )
        text = say(
            f"{task} ends after step {step}, alone: {fact}; {kept}. Lower its learning_rate.",
            f"{task} 在第 {step} 步后单独结束：{fact}；{kept}。请减小 learning_rate。",
        )
        self._recorder.noted(text, task=task, step=step, trouble=learner.trouble, best_step=best)

    def _tell_of_no_gradient(self, learner: Learner) -> None:
        task, base = learner.job.task, learner.base
        self._still.add(task)
        window = getattr(base.model.config, "sliding_window", None)
        tokens = learner.adapter.before_text
        text = say(
            f"{task}: the gradient was exactly 0 in the whole first epoch: nothing is learned.",
            f"{task}：第一轮中梯度始终恰好为 0：没有学到任何内容。",
        )
        if window and tokens:
            text += say(
                f" {base.name} attends to the last {window} tokens, and the {tokens} virtual tokens "
                "stand before the text: use lora, or a base that attends to more.",
                f"{base.name} 只关注最近 {window} 个词元，而 {tokens} 个虚拟词元位于文本之前："
                "请使用 lora，或换用窗口更大的基座。",
            )
        self._recorder.noted(text, task=task, step=learner.step)

    def _tell_of_refusal(self, reason: str) -> None:
        text = say(
            f"A checkpoint of run {self._run.id} can't be saved: {reason}. The last good one stays "
            f"and training goes on: make room on the disk of {self._run.path}.",
            f"无法保存训练 {self._run.id} 的检查点：{reason}。上一个完好的检查点不受影响，"
            f"训练继续进行：请清理 {self._run.path} 所在磁盘的空间。",
        )
        self._recorder.noted(text, checkpoint=None, refused=reason)
