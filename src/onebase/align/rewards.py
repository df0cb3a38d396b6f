"""Where PPO's rewards come from: a reward model on the same base, or a function of the user's."""

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution
from onebase.adapters.head import ScalarHead
from onebase.adapters.peft_format import load_adapter
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.align.answers import Answered, answered
from onebase.data.example import Example, Turn
from onebase.data.template import Template
from onebase.engine.compiled import compiled
from onebase.engine.generic_runner import GenericRunner
from onebase.errors import DataError, OnebaseError, UsageError
from onebase.language import say
from onebase.model.base import Base

RewardFunction = Callable[[str, str, Mapping[str, Any]], float]


@dataclass(frozen=True)
class Prompt:
    """A question of the data, as turns and as the tokens that the policy sees; `row` has the whole
    row of the file.
    """

    asked: tuple[Turn, ...]
    ids: tuple[int, ...]
    row: Mapping[str, Any]
    file: str
    line: int

    @property
    def text(self) -> str:
        """What the last turn asks."""
        return self.asked[-1].content


class RewardError(OnebaseError, RuntimeError):
    """A reward function that failed, or gave no finite number."""

    code = "reward"


@dataclass(frozen=True)
class FunctionReward:
    """A function of the user's: prompt, answer and the data row to a number."""

    name: str
    function: RewardFunction

    def __call__(self, prompt: Prompt, answer: str) -> float:
        """The reward of one answer. Raises RewardError, naming the row."""
        where = f"{prompt.file}:{prompt.line}"
        try:
            value = float(self.function(prompt.text, answer, prompt.row))
        except Exception as error:
            raise RewardError(
                say(
                    f"The reward function {self.name} failed on {where}: "
                    f"{type(error).__name__}: {error}. The answer was {answer[:200]!r}.",
                    f"奖励函数 {self.name} 在 {where} 处出错：{type(error).__name__}：{error}。"
                    f"当时的回答为 {answer[:200]!r}。",
                ),
                say(
                    "Mend it and give the same command again: the run goes on.",
                    "请修正后再次运行同一命令，训练将继续。",
                ),
            ) from error
        if not math.isfinite(value):
            raise RewardError(
                say(
                    f"The reward function {self.name} gave {value} on {where}, for {answer[:200]!r}.",
                    f"奖励函数 {self.name} 在 {where} 处返回 {value}，回答为 {answer[:200]!r}。",
                ),
                say("Let it return a finite number.", "请让它返回有限的数值。"),
            )
        return value


@dataclass(frozen=True)
class LearnedReward:
    """A reward model: the stored adapter, what it contributes to a pass, its head, and how texts
    are written for it. Scores are brought to mean 0 and deviation 1 over held-out answers.
    """

    name: str
    adapter: Adapter
    contribution: Contribution
    head: ScalarHead
    template: Template
    mean: float
    deviation: float

    def text(self, prompt: Prompt, answer: str) -> Answered:
        """An answer as the model reads it, cut to what it was trained on. Raises DataError where nothing
        is left of it.
        """
        turns = (*prompt.asked, Turn("assistant", answer))
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
        return answered(rendered)

    def standard(self, score: float) -> float:
        """A score in deviations from the mean."""
        return (score - self.mean) / self.deviation


Reward = FunctionReward | LearnedReward


def reward_named(name: str, base: Base, workspace: Workspace) -> Reward:
    """The reward that a command names: `module:function`, or a task whose adapter is a reward
    model. Raises UsageError.
    """
    if ":" in name:
        return FunctionReward(name, _function(name))
    store = AdapterStore(workspace)
    stored = store.get(name)
    if not stored.record.get("head"):
        raise UsageError(
            say(f"{stored.name} is no reward model.", f"{stored.name} 不是奖励模型。"),
            say(
                "Train one with onebase align reward, or give module:function.",
                "请用 onebase align reward 训练，或给出 模块:函数。",
            ),
        )
    if stored.record.get("base_fingerprint") != base.fingerprint:
        raise UsageError(
            say(
                f"{stored.name} was trained on {stored.base}, not on {base.name}.",
                f"{stored.name} 是在 {stored.base} 上训练的，而不是 {base.name}。",
            ),
            say(f"Use --base {quote(stored.base)}.", f"请使用 --base {quote(stored.base)}。"),
        )
    store.verify(stored)
    adapter = load_adapter(stored.path, base)
    assert adapter.head is not None, stored.name
    metrics = stored.metrics
    return LearnedReward(
        name=stored.name,
        adapter=adapter,
        contribution=compiled(GenericRunner(base), adapter, stored.path),
        head=adapter.head.requires_grad_(False),
        template=Template.from_config(base.tokenizer, stored.record["template"]),
        mean=float(metrics["score_mean"]),
        deviation=float(metrics["score_deviation"]) or 1.0,
    )


def _function(name: str) -> RewardFunction:
    """`module:function`, the module looked for in the present folder first."""
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            say(f"There is no reward {name}: {error}.", f"找不到奖励 {name}：{error}。"),
            say(
                "Write module:function, the module being a Python file in this folder.",
                "请写成 模块:函数，模块为当前目录中的 Python 文件。",
            ),
        ) from error
    if not callable(found):
        raise UsageError(
            say(f"{name} is no function.", f"{name} 不是函数。"),
            say(
                "It takes prompt, answer and the data row, and returns a number.",
                "它接受提问、回答和数据行，返回一个数值。",
            ),
        )
    function: RewardFunction = found
    return function


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct bigrams over all bigrams of the texts' words (Li et al. 2016, distinct-2)."""
    pairs = [pair for text in texts for pair in _bigrams(text)]
    return len(set(pairs)) / max(1, len(pairs))


def _bigrams(text: str) -> list[tuple[str, str]]:
    words = text.split() if " " in text.strip() else list(text.strip())
    return list(pairwise(words))
