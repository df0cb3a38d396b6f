"""Reasons why a run has learned nothing. Its result is then stored but not made the current version;
where training only did not help, the user is told.
"""

from onebase.language import say


def no_gradient() -> str:
    """No gradient reached the adapter."""
    return say(
        "Nothing was learned: the gradient was exactly 0 at every step.",
        "没有学到任何内容：每一步的梯度都恰好为 0。",
    )


def nothing_better() -> str:
    """The state that is kept is the one that the run started from."""
    return say(
        "No state was better on the held-out data than the one that the run started from: the stored "
        "version answers as before.",
        "在留出数据上，没有任何状态优于训练的起点：所保存的版本与训练前的回答相同。",
    )


def one_label(good: bool) -> str:
    """All training answers have the same label."""
    return say(
        f"There is nothing to learn: every training answer is labelled {'good' if good else 'bad'}.",
        f"没有可学习的内容：用于学习的回答全部被判为{'好' if good else '坏'}。",
    )


def equal_rewards(reward: float) -> str:
    """All answers that are compared had equal rewards."""
    return say(
        f"There is nothing to learn: so far all answers had equal rewards (the last one {reward:g}).",
        f"没有可学习的内容：到目前为止，相互比较的回答奖励全部相等（最近一个为 {reward:g}）。",
    )
