"""Loading a base, training on it with the live display, and printing the result."""

from onebase.adapters.store import StoredAdapter
from onebase.cli.adapter_report import command_to_use
from onebase.cli.display import run_display
from onebase.cli.session import Session, note, suggestion
from onebase.cli.units import loss_change
from onebase.language import say
from onebase.model.base import Base
from onebase.training.job import Job
from onebase.training.stored_result import LEARNED, name_to_use, summary
from onebase.training.train import resume, train


def show_trained(session: Session, stored: list[StoredAdapter]) -> None:
    """Print the result of a training, new or resumed."""
    session.show(
        {"run": stored[0].record["run"], "adapters": [summary(item) for item in stored]},
        *(report_line(item) for item in stored),
        next_command(session, stored[0]),
    )


def next_command(session: Session, stored: StoredAdapter) -> str:
    """The line that suggests how to use a new version."""
    return suggestion(command_to_use(name_to_use(stored), stored.record, session.workspace))


def load_base(name: str, precision: str | None) -> Base:
    """Load a base to train on, with notes on its progress and its precision."""
    note(say(f"Loading {name} …", f"正在加载 {name} …"))
    base = Base.load(name, precision=precision)
    note(
        say(
            f"Loaded in {base.precision} on {base.device.type}.",
            f"已加载：精度 {base.precision}，设备 {base.device.type}。",
        )
    )
    return base


def run_training(
    session: Session, jobs: list[Job], base: Base, *, restart: bool = False
) -> list[StoredAdapter]:
    """Train the jobs with the live display, or continue their interrupted run."""
    with run_display(session.workspace) as display:
        return train(
            jobs, base=base, workspace=session.workspace, observer=display, restart=restart
        )


def resume_training(session: Session, run: str, base: Base) -> list[StoredAdapter]:
    """Continue an interrupted training with the live display."""
    with run_display(session.workspace) as display:
        return resume(run, base=base, workspace=session.workspace, observer=display)


def report_line(adapter: StoredAdapter) -> str:
    """The result of one task, as a sentence."""
    metrics = adapter.metrics
    loss, before = metrics["eval_loss"], metrics["base_eval_loss"]
    text = f"{adapter.name} ({adapter.method}): "
    if metrics.get("diverged"):
        text += say(
            "its loss exploded or was no longer finite, lower learning_rate; ",
            "损失已发散或不是有限值，请减小 learning_rate；",
        )
    if metrics.get(LEARNED, True) is False:
        text += say(
            "nothing was learned, its gradient was 0 at every step, so it was not made current; ",
            "每一步的梯度都为 0，没有学到任何内容，因此未设为当前版本；",
        )
    if loss is None or before is None:
        return text + say("no held-out loss", "没有可供评估的留出损失")
    change = loss_change(before, loss)
    return text + say(f"held-out loss {change}", f"留出损失 {change}")
