"""The options of PPO and GRPO: rollouts, the algorithm, the value model, and evaluation."""

from dataclasses import dataclass
from typing import Literal

from onebase.adapters.option import StrictOptions, option
from onebase.align.divergence import Estimator
from onebase.training.options import CLIP


class RolloutOptions(StrictOptions):
    """How answers are sampled from the policy."""

    prompts: int = option(16, "Prompts a step.", "每步的提示数。", ge=1)
    samples: int = option(
        1,
        "Answers sampled for each prompt; GRPO needs at least 2.",
        "每个提示采样的回答数；GRPO 至少需要 2 个。",
        ge=1,
    )
    max_tokens: int = option(32, "Tokens of the longest answer.", "回答的最大词元数。", ge=1)
    min_tokens: int = option(
        0,
        "Tokens before which the end token is not sampled; the log-probabilities ignore this.",
        "在此词元数之前不采样结束符；对数概率不考虑这一限制。",
        ge=0,
    )
    temperature: float = option(
        1.0,
        "Sampling temperature; the log-probabilities are those at this temperature.",
        "采样温度；对数概率按该温度计算。",
        gt=0,
    )
    cut_penalty: float = option(
        0.0,
        "Subtracted from the reward of an answer that was cut off at max_tokens.",
        "回答在 max_tokens 处被截断时从奖励中减去的值。",
        ge=0,
    )
    end_bonus: float = option(
        0.0,
        "Added to the reward of an answer that ended by itself.",
        "回答自行结束时加到奖励上的值。",
        ge=0,
    )


class PPOOptions(StrictOptions):
    """The algorithm: PPO with advantage=gae, GRPO with advantage=group."""

    steps: int = option(50, "Steps of rollout and updates.", "采样并更新的步数。", ge=1)
    epochs: int = option(
        2, "Passes over the answers of a step.", "每步对所采样回答的训练遍数。", ge=1
    )
    minibatch: int = option(8, "Answers of one optimizer step.", "每个优化器步的回答数。", ge=1)
    learning_rate: float | None = option(
        None,
        "Learning rate of the policy; by default half of LoRA's own, and a tenth of any other method's.",
        "策略的学习率；默认为 LoRA 自身学习率的一半，其他方法为十分之一。",
        gt=0,
    )
    advantage: Literal["gae", "group"] = option(
        "gae",
        "gae: generalised advantage estimates with a value model (PPO); group: relative to the other answers to the same prompt (GRPO).",
        "gae：用价值模型估计广义优势（PPO）；group：与同一提示的其他回答相比较（GRPO）。",
    )
    gamma: float = option(1.0, "Discount factor of gae.", "gae 的折扣因子。", ge=0, le=1)
    lam: float = option(
        0.95,
        "Lambda of gae: 0 trusts the value model, 1 the rewards alone.",
        "gae 的 lambda：0 只信任价值模型，1 只信任奖励。",
        ge=0,
        le=1,
    )
    clip_range: float = option(
        0.2, "Clip range of the probability ratio.", "概率比的裁剪范围。", gt=0
    )
    kl: float = option(
        0.05,
        "KL coefficient: strength of the KL penalty. It is part of the rewards with gae, and of the loss with group.",
        "KL 系数：KL 惩罚的强度。gae 时计入奖励，group 时计入损失。",
        ge=0,
    )
    kl_target: float | None = option(
        None,
        "Target KL divergence (nats an answer) to which the coefficient adapts; by default it is fixed.",
        "KL 散度的目标值（每个回答的纳特数），系数随之调整；默认系数固定。",
        gt=0,
    )
    kl_estimator: Estimator | None = option(
        None,
        "Estimator of the KL divergence, k1, k2 or k3; by default k1 in rewards and k3 in a loss.",
        "KL 散度的估计量 k1、k2 或 k3；默认奖励中用 k1，损失中用 k3。",
    )
    whiten: bool = option(
        True,
        "Scale advantages to a standard deviation of 1; with group, divide them by that of the group.",
        "将优势缩放到标准差为 1；group 时除以组内标准差。",
    )

    @property
    def estimator(self) -> Estimator:
        """The estimator of the KL penalty. (In a loss, k3 has the gradient of KL(reference, policy), and k2
        that of KL(policy, reference); GRPO's paper uses k3.)
        """
        return self.kl_estimator or ("k3" if self.advantage == "group" else "k1")


class ValueOptions(StrictOptions):
    """The value model: a fresh adapter with a scalar head that starts at zero."""

    value_method: str = option("lora", "Method of the value model.", "价值模型所用的方法。")
    value_layers: str | None = option(
        None,
        "Layers of the value model, where its method has the choice; by default the top third, so that the layers below are computed once a step.",
        "价值模型作用的层（方法支持时）；默认为最上面三分之一，其下各层每步只计算一次。",
    )
    value_rate: float = option(
        2e-4, "Learning rate of the value model.", "价值模型的学习率。", gt=0
    )
    head_rate: float = option(
        1e-3, "Learning rate of its scalar head.", "其标量输出头的学习率。", gt=0
    )
    value_clip: float | None = option(
        0.2,
        "Clip range of the values around the old ones; null for none.",
        "价值相对旧值的裁剪范围；null 表示不裁剪。",
        gt=0,
    )


class WatchOptions(StrictOptions):
    """How the policy is evaluated, and when training stops early."""

    held_out: float = option(
        0.1,
        "Share of the prompts held out for evaluation, where no held-out file is given.",
        "未指定留出文件时，留出用于评估的提示所占比例。",
        gt=0,
        lt=1,
    )
    judge_every: int = option(5, "Steps between two evaluations.", "两次评估之间的步数。", ge=1)
    judge_answers: int = option(
        32, "Smallest number of answers of an evaluation.", "每次评估的最少回答数。", ge=1
    )
    stop_kl: float = option(
        30.0,
        "Training stops where the KL divergence of a step (nats an answer) exceeds this; the best policy below it is kept.",
        "某步的 KL 散度（每个回答的纳特数）超过该值即停止；保留低于该值的最佳策略。",
        gt=0,
    )
    stop_entropy: float = option(
        0.1,
        "Training stops where the entropy of the sampled tokens falls below this share of its first value.",
        "采样词元的熵低于初始值的该比例即停止。",
        ge=0,
        lt=1,
    )
    clip: float = CLIP


@dataclass(frozen=True)
class PPOSettings:
    """All options of a run."""

    rollout: RolloutOptions
    ppo: PPOOptions
    value: ValueOptions
    watch: WatchOptions
