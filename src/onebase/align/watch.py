"""How PPO is watched, and when it stops by itself."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from onebase.adapters.adapter import Adapter
from onebase.align.ppo import Progress
from onebase.language import say


class WatchOptions(BaseModel):
    """How PPO is watched: a share of `held_out` prompts judges the policy every `judge_every` steps,
    by `judge_answers` answers at least, and the best within `stop_kl` is kept. It stops where a step's KL
    goes over `stop_kl` (nats an answer) or the entropy of its tokens falls under `stop_entropy` of what
    it was.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    held_out: float = Field(0.1, gt=0, lt=1)
    judge_every: int = Field(5, ge=1)
    judge_answers: int = Field(32, ge=1)
    stop_kl: float = Field(30.0, gt=0)
    stop_entropy: float = Field(0.1, ge=0, lt=1)
    clip: float = Field(1.0, gt=0)


def trouble(record: dict[str, float], progress: Progress, watching: WatchOptions) -> str:
    """Why PPO should stop after this step, or nothing."""
    if record["kl"] > watching.stop_kl:
        return say(
            f"Stopped after step {progress.step}: the KL divergence of {record['kl']:.1f} is over "
            f"stop_kl={watching.stop_kl:g}. The best policy before it is kept.",
            f"第 {progress.step} 步后停止：KL 散度 {record['kl']:.1f} 超过 "
            f"stop_kl={watching.stop_kl:g}。保留此前最佳的策略。",
        )
    floor = watching.stop_entropy * (progress.first_entropy or 0.0)
    if record["entropy"] < floor:
        return say(
            f"Stopped after step {progress.step}: the answers have become all alike (entropy "
            f"{record['entropy']:.3f}, at first {progress.first_entropy:.3f}). The best policy "
            "before it is kept.",
            f"第 {progress.step} 步后停止：回答已趋于雷同（熵 {record['entropy']:.3f}，起初 "
            f"{progress.first_entropy:.3f}）。保留此前最佳的策略。",
        )
    return ""


def judgements_in(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The first judgement of a run, the best and the last, from its metrics.jsonl: checkpoints of
    format 1 don't hold them.
    """
    judged = [line for line in lines if "eval_reward" in line]
    if not judged:
        return {}
    best = [line for line in judged if line["best"]] or judged
    chosen = {"first": judged[0], "best": best[-1], "last": judged[-1]}
    return {
        name: {key: line[key] for key in line if key == "step" or key.startswith("eval_")}
        for name, line in chosen.items()
    }


def without_dropout(adapter: Adapter) -> list[str]:
    """What to say of a policy that was to learn with dropout."""
    dropout = 0.0 if adapter.lora is None else adapter.lora.dropout
    if not dropout:
        return []
    return [
        say(
            f"PPO learns without dropout (dropout={dropout:g} is not used): its answers are drawn "
            "without it.",
            f"PPO 训练不使用 dropout（忽略 dropout={dropout:g}）：回答也是在没有 dropout 时生成的。",
        )
    ]
