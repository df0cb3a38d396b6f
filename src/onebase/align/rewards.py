"""The rewards of PPO: from a reward model on the same base, or a function of the user."""

import importlib
import math
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
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
        where = f"{prompt.file}:{prompt.line}"
        quoted = repr(answer[:200])
        try:
            value = self.function(prompt.text, answer, prompt.row)
        except (Exception, SystemExit) as error:  # sys.exit() would end the training without a word
            raise RewardError(
                say(
                    f"The reward function {self.name} failed on {where}: {_cause(error)}. "
                    f"The answer was {quoted}.",
                    f"奖励函数 {self.name} 在 {where} 处出错：{_cause(error)}。当时的回答为 {quoted}。",
                ),
                say(
                    "Correct it and give the same command again: the run continues.",
                    "请修正后再次运行同一命令，训练将继续。",
                ),
            ) from error
        number = _number(value)
        if not math.isfinite(number):
            shown = repr(value)[:100]
            raise RewardError(
                say(
                    f"The reward function {self.name} returned {shown} on {where}, for {quoted}.",
                    f"奖励函数 {self.name} 在 {where} 处返回 {shown}，回答为 {quoted}。",
                ),
                say(
                    "Return a finite number and give the same command again: the run continues.",
                    "请让它返回有限的数值，然后再次运行同一命令，训练将继续。",
                ),
            )
        return number


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
    """The reward with this name: `module:function`, or a task whose adapter is a reward model. Raises
    UsageError.
    """
    if is_function(name):
        return FunctionReward(name, _function(name))
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
    """Whether the name is that of a function, `module:function`, and not of a task."""
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


def _function(name: str) -> RewardFunction:
    """The function of `module:function`; the current folder is searched first."""
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        if _is_missing(error, module):
            raise UsageError(
                say(f"The reward {name} was not found: {error}.", f"找不到奖励 {name}：{error}。"),
                say(
                    "Write module:function, where the module is a Python file in this folder, without "
                    ".py.",
                    "请写成 模块:函数，模块为当前目录中的 Python 文件，不带 .py。",
                ),
            ) from error
        raise UsageError(
            say(
                f"The module of the reward {name} can't be imported: {_cause(error)}.",
                f"无法导入奖励 {name} 的模块：{_cause(error)}。",
            ),
            say(
                "Correct it, or install what it imports, and give the same command again.",
                "请修正该模块或安装其所需的包，然后再次运行同一命令。",
            ),
        ) from error
    if not callable(found):
        raise UsageError(
            say(f"{name} is not a function.", f"{name} 不是函数。"),
            say(
                "It takes prompt, answer and the data row, and returns a number.",
                "它接受提问、回答和数据行，返回一个数值。",
            ),
        )
    function: RewardFunction = found
    return function


def _is_missing(error: BaseException, module: str) -> bool:
    """Whether a module, or the function in it, is not there; else what it holds fails."""
    if isinstance(error, ModuleNotFoundError):
        return error.name is None or module == error.name or module.startswith(f"{error.name}.")
    if isinstance(error, ValueError | TypeError):  # no name of a module
        return not _own_frames(error)
    found = sys.modules.get(module)
    return isinstance(error, AttributeError) and error.obj is found is not None


def _cause(error: BaseException) -> str:
    """What went wrong in the user's code, and where."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = _own_frames(error)
    if not frames or isinstance(error, SyntaxError):  # which names its file and line itself
        return text
    file, line = Path(frames[-1].filename).name, frames[-1].lineno
    return say(f"{text} ({file}, line {line})", f"{text}（{file} 第 {line} 行）")


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """An error's frames in the user's code: outside this file, libraries and the import system."""
    elsewhere = ("<frozen", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    frames = traceback.extract_tb(error.__traceback__)
    return [
        frame
        for frame in frames
        if frame.filename != __file__ and not frame.filename.startswith(elsewhere)
    ]


def _number(value: object) -> float:
    """A reward as a float; NaN if it is not a number."""
    try:
        return float(value)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - whatever __float__ of the user's object raises
        return math.nan


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct bigrams over all bigrams of the texts' words (Li et al. 2016, distinct-2)."""
    words = [text.split() if " " in text.strip() else list(text.strip()) for text in texts]
    pairs = [pair for words_of_text in words for pair in pairwise(words_of_text)]
    return len(set(pairs)) / max(1, len(pairs))
