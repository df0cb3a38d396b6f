"""The names of measurements in the records of a run, by their keys."""

from onebase.language import say

_NAMES = {
    "loss": ("loss", "损失"),
    "reward": ("reward", "奖励"),
    "kl": ("KL", "KL"),
    "entropy": ("entropy", "熵"),
    "pair_accuracy": ("pair accuracy", "回答对准确率"),
    "margin": ("margin", "差值"),
    "eval_loss": ("held-out loss", "留出损失"),
    "eval_reward": ("held-out reward", "留出奖励"),
    "eval_kl": ("KL", "KL"),
    "eval_deviation": ("reward deviation", "奖励标准差"),
    "eval_distinct_2": ("distinct-2", "distinct-2"),
    "eval_length": ("answer tokens", "回答词元数"),
    "eval_objective": ("objective", "目标值"),
}


def name_of(key: str) -> str:
    """The name to print for a measurement."""
    if key in _NAMES:
        return say(*_NAMES[key])
    return key.removeprefix("eval_").replace("_", " ")
