"""Scores of answers by a stored reward model."""

import logging
from collections.abc import Callable, Sequence

import torch

from onebase.adapters.workspace import Workspace
from onebase.align.answers import packs
from onebase.align.rewards import LearnedReward, Prompt, is_function, reward_named
from onebase.data.example import Turn
from onebase.engine.rows import read_rows
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.training.loop import pack_tokens

REWARD = "reward"
_log = logging.getLogger("onebase")


def require_task(name: str) -> None:
    """Raise UsageError for a reward function: only a reward model can be scored with."""
    if is_function(name):
        raise UsageError(
            say(f"{name!r} is a function, not a task.", f"{name!r} 是函数，不是任务。"),
            say(
                "Name a task trained by onebase align reward.",
                "请指明由 onebase align reward 训练的任务。",
            ),
        )


def score_answers(
    task: str,
    answers: Sequence[tuple[str, str]],
    *,
    base: Base,
    workspace: Workspace | None = None,
    noted: Callable[[str], None] | None = None,
) -> list[float]:
    """The score of every (prompt, answer) by the reward model `task`, in standard deviations from its mean on
    held-out answers. An empty prompt is that of a bare text. What the user should know goes to `noted`,
    or else to the log. Raises UsageError.
    """
    require_task(task)
    model = reward_named(task, base, workspace or Workspace())
    assert isinstance(model, LearnedReward)
    units = []
    for number, (question, answer) in enumerate(answers, start=1):
        prompt = Prompt((Turn("user", question),), (), {}, "answer", number)
        units.append([model.text(prompt, answer).score_row(REWARD)])
    for text in model.notes:
        (noted or _log.warning)(text)
    scores: list[float] = []
    for group in packs(units, 2 * pack_tokens(base.device)):
        with torch.inference_mode():
            rows = [row for index in group for row in units[index]]
            output, _ = read_rows(base, rows, {REWARD: model.contribution})
            scores += [model.standardised(score) for score in model.head(output.states).tolist()]
    return scores
