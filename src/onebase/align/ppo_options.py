"""The options of PPO and GRPO: rollouts, the algorithm, the value model, and evaluation."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from onebase.align.divergence import Estimator

_CONFIG = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RolloutOptions(BaseModel):
    """How answers are sampled from the policy."""

    model_config = _CONFIG

    prompts: int = Field(
        16,
        ge=1,
        description="Prompts a step.",
        json_schema_extra={"zh": "每步的提示数。"},
    )
    samples: int = Field(
        1,
        ge=1,
        description="Answers sampled for each prompt; GRPO needs at least 2.",
        json_schema_extra={"zh": "每个提示采样的回答数；GRPO 至少需要 2 个。"},
    )
    max_tokens: int = Field(
        32,
        ge=1,
        description="Tokens of the longest answer.",
        json_schema_extra={"zh": "回答的最大词元数。"},
    )
    min_tokens: int = Field(
        0,
        ge=0,
        description="Tokens before which the end token is not sampled; the log-probabilities ignore this.",
        json_schema_extra={"zh": "在此词元数之前不采样结束符；对数概率不考虑这一限制。"},
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="Sampling temperature; the log-probabilities are those at this temperature.",
        json_schema_extra={"zh": "采样温度；对数概率按该温度计算。"},
    )
    cut_penalty: float = Field(
        0.0,
        ge=0,
        description="Subtracted from the reward of an answer that was cut off at max_tokens.",
        json_schema_extra={"zh": "回答在 max_tokens 处被截断时从奖励中减去的值。"},
    )
    end_bonus: float = Field(
        0.0,
        ge=0,
        description="Added to the reward of an answer that ended by itself.",
        json_schema_extra={"zh": "回答自行结束时加到奖励上的值。"},
    )


class PPOOptions(BaseModel):
    """The algorithm: PPO with advantage=gae, GRPO with advantage=group."""

    model_config = _CONFIG

    steps: int = Field(
        50,
        ge=1,
        description="Steps of rollout and updates.",
        json_schema_extra={"zh": "采样并更新的步数。"},
    )
    epochs: int = Field(
        2,
        ge=1,
        description="Passes over the answers of a step.",
        json_schema_extra={"zh": "每步对所采样回答的训练遍数。"},
    )
    minibatch: int = Field(
        8,
        ge=1,
        description="Answers of one optimizer step.",
        json_schema_extra={"zh": "每个优化器步的回答数。"},
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Learning rate of the policy; by default half of LoRA's own, and a tenth of any other method's.",
        json_schema_extra={
            "zh": "策略的学习率；默认为 LoRA 自身学习率的一半，其他方法为十分之一。"
        },
    )
    advantage: Literal["gae", "group"] = Field(
        "gae",
        description="gae: generalised advantage estimates with a value model (PPO); group: relative to the other answers to the same prompt (GRPO).",
        json_schema_extra={
            "zh": "gae：用价值模型估计广义优势（PPO）；group：与同一提示的其他回答相比较（GRPO）。"
        },
    )
    gamma: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Discount factor of gae.",
        json_schema_extra={"zh": "gae 的折扣因子。"},
    )
    lam: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Lambda of gae: 0 trusts the value model, 1 the rewards alone.",
        json_schema_extra={"zh": "gae 的 lambda：0 只信任价值模型，1 只信任奖励。"},
    )
    clip_range: float = Field(
        0.2,
        gt=0,
        description="Clip range of the probability ratio.",
        json_schema_extra={"zh": "概率比的裁剪范围。"},
    )
    kl: float = Field(
        0.05,
        ge=0,
        description="KL coefficient: strength of the KL penalty. It is part of the rewards with gae, and of the loss with group.",
        json_schema_extra={"zh": "KL 系数：KL 惩罚的强度。gae 时计入奖励，group 时计入损失。"},
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="Target KL divergence (nats an answer) to which the coefficient adapts; by default it is fixed.",
        json_schema_extra={
            "zh": "KL 散度的目标值（每个回答的纳特数），系数随之调整；默认系数固定。"
        },
    )
    kl_estimator: Estimator | None = Field(
        None,
        description="Estimator of the KL divergence, k1, k2 or k3; by default k1 in rewards and k3 in a loss.",
        json_schema_extra={"zh": "KL 散度的估计量 k1、k2 或 k3；默认奖励中用 k1，损失中用 k3。"},
    )
    whiten: bool = Field(
        True,
        description="Scale advantages to a standard deviation of 1; with group, divide them by that of the group.",
        json_schema_extra={"zh": "将优势缩放到标准差为 1；group 时除以组内标准差。"},
    )

    @property
    def estimator(self) -> Estimator:
        """The estimator of the KL penalty. (In a loss, k3 has the gradient of KL(reference, policy), and k2
        that of KL(policy, reference); GRPO's paper uses k3.)
        """
        return self.kl_estimator or ("k3" if self.advantage == "group" else "k1")


class ValueOptions(BaseModel):
    """The value model: a fresh adapter with a scalar head that starts at zero."""

    model_config = _CONFIG

    value_method: str = Field(
        "lora",
        description="Method of the value model.",
        json_schema_extra={"zh": "价值模型所用的方法。"},
    )
    value_layers: str | None = Field(
        None,
        description="Layers of the value model, where its method has the choice; by default the top third, so that the layers below are computed once a step.",
        json_schema_extra={
            "zh": "价值模型作用的层（方法支持时）；默认为最上面三分之一，其下各层每步只计算一次。"
        },
    )
    value_rate: float = Field(
        2e-4,
        gt=0,
        description="Learning rate of the value model.",
        json_schema_extra={"zh": "价值模型的学习率。"},
    )
    head_rate: float = Field(
        1e-3,
        gt=0,
        description="Learning rate of its scalar head.",
        json_schema_extra={"zh": "其标量输出头的学习率。"},
    )
    value_clip: float | None = Field(
        0.2,
        gt=0,
        description="Clip range of the values around the old ones; null for none.",
        json_schema_extra={"zh": "价值相对旧值的裁剪范围；null 表示不裁剪。"},
    )


class WatchOptions(BaseModel):
    """How the policy is evaluated, and when training stops early."""

    model_config = _CONFIG

    held_out: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of the prompts held out for evaluation, where no held-out file is given.",
        json_schema_extra={"zh": "未指定留出文件时，留出用于评估的提示所占比例。"},
    )
    judge_every: int = Field(
        5,
        ge=1,
        description="Steps between two evaluations.",
        json_schema_extra={"zh": "两次评估之间的步数。"},
    )
    judge_answers: int = Field(
        32,
        ge=1,
        description="Smallest number of answers of an evaluation.",
        json_schema_extra={"zh": "每次评估的最少回答数。"},
    )
    stop_kl: float = Field(
        30.0,
        gt=0,
        description="Training stops where the KL divergence of a step (nats an answer) exceeds this; the best policy below it is kept.",
        json_schema_extra={
            "zh": "某步的 KL 散度（每个回答的纳特数）超过该值即停止；保留低于该值的最佳策略。"
        },
    )
    stop_entropy: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Training stops where the entropy of the sampled tokens falls below this share of its first value.",
        json_schema_extra={"zh": "采样词元的熵低于初始值的该比例即停止。"},
    )
    clip: float = Field(
        1.0,
        gt=0,
        description="Largest gradient norm; larger gradients are scaled down.",
        json_schema_extra={"zh": "梯度范数上限，超过则按比例缩小。"},
    )


@dataclass(frozen=True)
class PPOSettings:
    """All options of a run."""

    rollout: RolloutOptions
    ppo: PPOOptions
    value: ValueOptions
    watch: WatchOptions
