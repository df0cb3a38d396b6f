"""Why a run has taught its adapter nothing. What it stores then does not become the current version,
but where learning did not help: that is told alone.
"""

from onebase.language import say


def no_gradient() -> str:
    """Where nothing that the adapter learns reaches the loss."""
    return say(
        "Nothing was learned: the gradient was exactly 0 at every step.",
        "没有学到任何内容：每一步的梯度都恰好为 0。",
    )


def nothing_better() -> str:
    """Where the state that is kept is the one that the run began from."""
    return say(
        "No state was better on the held-out data than the one that the run began from: what is stored "
        "answers as before.",
        "在留出数据上，没有任何状态优于训练的起点：所保存的版本与训练前的回答相同。",
    )


def one_judgement(good: bool) -> str:
    """Where every answer to learn from is judged alike."""
    return say(
        f"There is nothing to learn: every answer to learn from is judged {'good' if good else 'bad'}.",
        f"没有可学习的内容：用于学习的回答全部被判为{'好' if good else '坏'}。",
    )


def equal_rewards(reward: float) -> str:
    """Where no answer was worth more than another one that it is compared with."""
    return say(
        "There is nothing to learn: so far all answers that are compared had equal rewards "
        f"(the last one {reward:g}).",
        f"没有可学习的内容：到目前为止，相互比较的回答奖励全部相等（最近一个为 {reward:g}）。",
    )
