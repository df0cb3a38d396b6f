"""The base that an alignment loads, and its precision: by default those that its adapters were trained on."""

from shlex import quote

from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.job import AlignJob
from onebase.align.rewards import is_function, stored_reward
from onebase.align.scoring import require_task
from onebase.align.start import stored_start
from onebase.align.trained_on import precision_of
from onebase.engine.task_bases import BaseChoice, trained_on
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.fetch import DEFAULT_BASE
from onebase.training.train import precision_for


def base_for_job(
    job: AlignJob,
    workspace: Workspace,
    *,
    base: str | None = None,
    precision: str | None = None,
    reward: str | None = None,
) -> BaseChoice:
    """The base of a job: `base` and `precision` where they are given, else those of the adapter that it
    starts from, else those of its reward model; nf4 for a fresh qlora.

    Raises UsageError for adapters that are not there, or that were trained on different bases.
    """
    start = None if job.method else stored_start(job, workspace)
    reward_model = None
    if reward is not None and not is_function(reward):
        reward_model = stored_reward(reward, AdapterStore(workspace))
    trained = [stored for stored in (start, reward_model) if stored is not None]
    if base is None and len({stored.record.get("base_fingerprint") for stored in trained}) > 1:
        raise _two_bases(*trained)
    if job.method:
        precision = precision_for([job.training_job(job.method, None)], precision)
    return _chosen(trained, base, precision)


def base_for_scores(
    task: str, workspace: Workspace, *, base: str | None = None, precision: str | None = None
) -> BaseChoice:
    """The base of the reward model `task`. Raises UsageError if it does not exist."""
    require_task(task)
    return _chosen([stored_reward(task, AdapterStore(workspace))], base, precision)


def _chosen(trained: list[StoredAdapter], base: str | None, precision: str | None) -> BaseChoice:
    """The base and precision that are given, else those of the first adapter."""
    bases = [trained_on(stored) for stored in trained]
    precisions = [text for stored in trained if (text := precision_of(stored))]
    return BaseChoice(
        base or next(iter(bases), DEFAULT_BASE),
        precision or next(iter(precisions), None),
    )


def _two_bases(start: StoredAdapter, reward_model: StoredAdapter) -> UsageError:
    command = f"onebase align reward --task TASK --data FILE --base {quote(start.base)}"
    return UsageError(
        say(
            f"{start.name} was trained on {start.base}, the reward model {reward_model.name} on "
            f"{reward_model.base}: "
            "policy and reward model share one base.",
            f"{start.name} 是在 {start.base} 上训练的，奖励模型 {reward_model.name} 则是在 {reward_model.base} 上："
            "策略与奖励模型共用一个基座。",
        ),
        say(
            f"Train a reward model on the policy's base ({command}), or start a fresh policy with "
            "--method.",
            f"请在策略的基座上训练奖励模型（{command}），或用 --method 重新开始训练策略。",
        ),
    )
