"""The state of a PPO run: models, options, prompts and progress."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onebase.align.divergence import KLCoefficient
from onebase.align.experience import Models
from onebase.align.ppo_options import PPOSettings
from onebase.align.ppo_setup import PPOSetup
from onebase.align.rewards import Prompt
from onebase.training.batch_sampler import BatchSampler
from onebase.training.trainable_adapter import TrainableAdapter

_SEEDS = 1 << 62  # a generator takes a seed below it


@dataclass
class PPOState:
    """The state of a run: models, options, prompts and progress.

    `evaluations` are the records of the first one, the best and the last, each with its step; `best` is
    the best objective. `varied` says whether any answers that are compared had different rewards.
    """

    task: str
    seed: int
    models: Models
    settings: PPOSettings
    batches: BatchSampler[Prompt]
    held_out: list[Prompt]
    kl: KLCoefficient
    step: int = 0
    first_entropy: float | None = None
    best: float = -math.inf
    stopped: str = ""
    evaluated_step: int = -1
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    varied: bool = False

    @classmethod
    def of(cls, setup: PPOSetup) -> "PPOState":
        """The state before the first step."""
        options, seed = setup.settings.ppo, setup.job.seed
        return cls(
            task=setup.job.task,
            seed=seed,
            models=setup.models,
            settings=setup.settings,
            batches=BatchSampler(setup.prompts, setup.settings.rollout.prompts, seed),
            held_out=setup.held_out,
            kl=KLCoefficient(options.kl, options.kl_target),
        )

    @property
    def progress(self) -> Mapping[str, tuple[int, int]]:
        """The task's steps: those done, and all."""
        return {self.task: (self.step, self.settings.ppo.steps)}

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.settings.ppo.steps or bool(self.stopped)

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation comes before the next step."""
        here = self.step % self.settings.watch.judge_every == 0
        return here and self.evaluated_step != self.step

    @property
    def step_seed(self) -> int:
        """The seed of the next step's rollouts; those of answers follow it."""
        return ((self.seed << 20) + self.step * 4096) % _SEEDS

    @property
    def trainables(self) -> list[TrainableAdapter]:
        """The models that are trained."""
        value = self.models.value
        return [self.models.policy] if value is None else [self.models.policy, value]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        value = self.models.value
        return {
            "policy": self.models.policy.state_dict(),
            "value": None if value is None else value.state_dict(),
            "order": self.batches.state_dict(),
            "step": self.step,
            "penalty": self.kl.value,
            "first_entropy": self.first_entropy,
            "best": self.best,
            "stopped": self.stopped,
            "judged": self.evaluated_step,
            "judgements": self.evaluations,
            "varied": self.varied,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.models.policy.load_state_dict(state["policy"])
        if self.models.value is not None:
            self.models.value.load_state_dict(state["value"])
        self.batches.load_state_dict(state["order"])
        self.step = state["step"]
        self.kl.value = state["penalty"]
        self.first_entropy = state["first_entropy"]
        self.best = state["best"]
        self.stopped = state["stopped"]
        self.evaluated_step = state["judged"]
        self.evaluations = state.get("judgements", {})  # not in format 1
        self.varied = state.get("varied", True)  # not in format 1


def evaluations_in(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The first evaluation of a run, the best and the last, from its metrics.jsonl: a checkpoint of
    format 1 does not have them.
    """
    evaluations = [line for line in lines if "eval_reward" in line]
    if not evaluations:
        return {}
    best = [line for line in evaluations if line["best"]] or evaluations
    chosen = {"first": evaluations[0], "best": best[-1], "last": evaluations[-1]}
    return {
        name: {key: line[key] for key in line if key == "step" or key.startswith("eval_")}
        for name, line in chosen.items()
    }
