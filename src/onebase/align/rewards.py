"""The rewards of PPO: from a reward model on the same base, or a function of the user."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from onebase.adapters.adapter import Adapter
from onebase.adapters.base_match import require_trained_on
from onebase.adapters.contribution import Contribution
from onebase.adapters.peft_format import load_adapter
from onebase.adapters.scalar_head import ScalarHead
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.answers import PromptAnswer, prompt_answer
from onebase.align.trained_on import other_precision
from onebase.align.user_function import call_function, load_function
from onebase.data.example import Example, Turn
from onebase.data.template import Template
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.errors import DataError, OnebaseError, UsageError
from onebase.language import say
from onebase.model.base import Base

RewardFunction = Callable[[str, str, Mapping[str, Any]], float]


@dataclass(frozen=True)
class Prompt:
    """A prompt of the data, as turns and as the tokens that the policy reads; `row` is the whole row of the
    file.
    """

    turns: tuple[Turn, ...]
    ids: tuple[int, ...]
    row: Mapping[str, Any]
    file: str
    line: int

    @property
    def text(self) -> str:
        """The text of the last turn."""
        return self.turns[-1].content


class RewardError(OnebaseError, RuntimeError):
    """A reward function that failed or returned no finite number."""

    code = "reward"


@dataclass(frozen=True)
class FunctionReward:
    """A function of the user, from prompt, answer and data row to a number."""

    name: str
    function: RewardFunction

    def __call__(self, prompt: Prompt, answer: str) -> float:
        """The reward of one answer. Raises RewardError, naming the row."""
        return call_function(
            self.function,
            (prompt.text, answer, prompt.row),
            name=say(f"reward function {self.name}", f"奖励函数 {self.name}"),
            where=f"{prompt.file}:{prompt.line}",
            answer=answer,
            error=RewardError,
        )


@dataclass(frozen=True)
class LearnedReward:
    """A reward model: the stored adapter, its contribution to a pass, its head, and the template of its
    texts. Scores are standardised by their mean and standard deviation on held-out answers. `notes` are
    what the user should know of it.
    """

    name: str
    adapter: Adapter
    contribution: Contribution
    head: ScalarHead
    template: Template
    mean: float
    std: float
    notes: tuple[str, ...] = ()

    def text(self, prompt: Prompt, answer: str) -> PromptAnswer:
        """An answer as the model reads it, cut to the length it was trained on. Raises DataError where no
        answer is left.
        """
        turns = (*prompt.turns, Turn("assistant", answer))
        rendered = self.template.example(Example(turns, prompt.file, prompt.line))
        if rendered.begin == len(rendered.ids):
            limit = self.template.max_tokens
            raise DataError(
                say(
                    f"{prompt.file}:{prompt.line} leaves no answer within {limit} tokens.",
                    f"{prompt.file}:{prompt.line} 在 {limit} 个词元内没有留下回答。",
                ),
                say("Shorten the row.", "请缩短该行。"),
            )
        return prompt_answer(rendered)

    def at(self, rendered_at: datetime) -> "LearnedReward":
        """The same, with texts rendered at that time."""
        return replace(self, template=self.template.at(rendered_at))

    def standardised(self, score: float) -> float:
        """A score in standard deviations from the mean."""
        return (score - self.mean) / self.std


Reward = FunctionReward | LearnedReward


def reward_named(name: str, base: Base, workspace: Workspace) -> Reward:
    """The reward with this name: a function (`module:function` or `path/to/file.py:function`), or a task
    whose adapter is a reward model. Raises UsageError.
    """
    if is_function(name):
        takes = say("prompt, answer and the data row", "提问、回答和数据行")
        return FunctionReward(name, load_function(name, say("reward", "奖励"), takes))
    store = AdapterStore(workspace)
    stored = stored_reward(name, store)
    require_trained_on(stored, base)
    store.verify(stored)
    adapter = load_adapter(stored.path, base)
    assert adapter.head is not None, stored.name
    metrics = stored.metrics
    return LearnedReward(
        name=stored.name,
        adapter=adapter,
        contribution=with_prompt_kv(GenericRunner(base), adapter, stored.path),
        head=adapter.head.requires_grad_(False),
        template=Template.from_config(base.tokenizer, stored.record["template"]),
        mean=float(metrics["score_mean"]),
        std=float(metrics["score_deviation"]) or 1.0,
        notes=tuple(other_precision(stored, base)),
    )


def is_function(name: str) -> bool:
    """Whether the name is that of a function, `module:function` or `file.py:function`, and not of a task."""
    return ":" in name


def stored_reward(name: str, store: AdapterStore) -> StoredAdapter:
    """The reward model of a task. Raises UsageError where it is not one."""
    stored = store.get(name)
    if not stored.record.get("head"):
        raise UsageError(
            say(f"{stored.name} is not a reward model.", f"{stored.name} 不是奖励模型。"),
            say(
                "Train one with onebase align reward, or give module:function.",
                "请用 onebase align reward 训练，或给出 模块:函数。",
            ),
        )
    return stored


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct bigrams over all bigrams of the texts' words (Li et al. 2016, distinct-2)."""
    pairs = [pair for text in texts for pair in _bigrams(text)]
    return len(set(pairs)) / max(1, len(pairs))


def _bigrams(text: str) -> list[tuple[str, str]]:
    words = text.split() if " " in text.strip() else list(text.strip())
    return list(pairwise(words))
