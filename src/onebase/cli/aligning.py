"""Running an alignment with the live display, and printing the result."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict

from onebase.adapters.store import StoredAdapter
from onebase.align.base_choice import base_for_job
from onebase.align.job import AlignJob, check_job
from onebase.align.resume import resume_aligned
from onebase.cli.display import run_display
from onebase.cli.jobs import job_fields
from onebase.cli.options import AlignFlags, BaseFlags, LearningFlags, StartFlags
from onebase.cli.session import Session, suggestion
from onebase.cli.stdout import prints_to_stderr
from onebase.cli.training import load_base, next_command
from onebase.cli.units import loss_change
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.training.stored_result import name_to_use, summary


def align_job(target: AlignFlags, start: StartFlags, learning: LearningFlags) -> AlignJob:
    """The job that the flags of an alignment ask for. Raises UsageError."""
    if start.method is not None and start.start is not None:
        raise UsageError(
            say("Both --method and --from were given.", "同时给出了 --method 和 --from。"),
            say(
                "Start with a new adapter (--method) or from a stored one (--from), not both.",
                "用新的适配器开始（--method），或从已保存的适配器开始（--from），两者选一。",
            ),
        )
    job = AlignJob(**asdict(target), **asdict(start), **job_fields(learning))
    check_job(job)
    return job


def align(
    session: Session,
    train: Callable[..., StoredAdapter],
    job: AlignJob,
    flags: BaseFlags,
    *,
    restart: bool,
    reward: str | None = None,
) -> None:
    """Train on the base of the job's adapters, unless the flags name another.

    `reward` is for PPO only. It may be a function of the user, whose prints go to stderr.
    """
    session.workspace.require_writable()
    chosen = base_for_job(
        job, session.workspace, base=flags.base, precision=flags.precision, reward=reward
    )
    base = load_base(chosen.name, chosen.precision)
    ppo_options = {} if reward is None else {"reward": reward}
    with (
        nullcontext() if reward is None else prints_to_stderr(),
        run_display(session.workspace) as display,
    ):
        stored = train(
            job,
            **ppo_options,
            base=base,
            workspace=session.workspace,
            observer=display,
            restart=restart,
        )
    _show_aligned(session, stored)


def resume_align(session: Session, run: str, base: Base) -> None:
    """Continue an interrupted alignment, for `onebase resume`."""
    with prints_to_stderr(), run_display(session.workspace) as display:
        stored = resume_aligned(run, base=base, workspace=session.workspace, observer=display)
    _show_aligned(session, stored)


def _show_aligned(session: Session, stored: StoredAdapter) -> None:
    """Print the result of an alignment."""
    metrics, option = stored.metrics, session.workspace.option
    name = f"{stored.name} ({stored.method}): "
    if stored.record.get("head"):
        text = name + say(
            f"pair accuracy {metrics['pair_accuracy']:.3f} over {metrics['pairs']} held-out pairs, "
            f"calibration error {metrics['calibration_error']:.3f}, scores {metrics['score_mean']:.2f} "
            f"± {metrics['score_deviation']:.2f}",
            f"{metrics['pairs']} 个留出回答对的准确率 {metrics['pair_accuracy']:.3f}，校准误差 "
            f"{metrics['calibration_error']:.3f}，得分 {metrics['score_mean']:.2f} ± "
            f"{metrics['score_deviation']:.2f}",
        )
        reward = name_to_use(stored)
        command = f"onebase align ppo --task T --method lora --prompts F --reward {reward}{option}"
        next_step = suggestion(command)
    elif "reward_before" in metrics:
        text = name + say(
            f"held-out reward {metrics['reward_before']:.3f} -> {metrics['reward']:.3f}, KL "
            f"{metrics['kl']:.2f}, distinct-2 {metrics['distinct_2_before']:.2f} -> "
            f"{metrics['distinct_2']:.2f} (step {metrics['best_step']} of {metrics['steps']})",
            f"留出奖励 {metrics['reward_before']:.3f} -> {metrics['reward']:.3f}，KL "
            f"{metrics['kl']:.2f}，distinct-2 {metrics['distinct_2_before']:.2f} -> "
            f"{metrics['distinct_2']:.2f}（第 {metrics['best_step']} 步，共 {metrics['steps']} 步）",
        )
        next_step = say(
            f"Curves and samples: onebase runs show {stored.record['run']}{option}",
            f"曲线与样例：onebase runs show {stored.record['run']}{option}",
        )
    else:
        change = loss_change(metrics["base_eval_loss"], metrics["eval_loss"])
        text = name + say(f"held-out loss {change}", f"留出损失 {change}")
        next_step = next_command(session, stored)
    session.show({"run": stored.record["run"], "adapters": [summary(stored)]}, text, next_step)
