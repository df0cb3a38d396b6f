"""The configurations of a race, and its result as text."""

from pathlib import Path

from onebase.cli.leaderboard import leaderboard_header, leaderboard_rows
from onebase.cli.session import Session, note
from onebase.cli.training import next_command, report_line
from onebase.errors import UsageError
from onebase.language import say
from onebase.quantity import duration
from onebase.search.race import RaceResult
from onebase.search.space import Space, default_space, read_space
from onebase.training.job import Job
from onebase.training.stored_result import summary


def space_of(methods: str | None, file: Path | None, job: Job) -> Space:
    """The configurations to race, from a file or for the given methods. Raises UsageError."""
    if methods is not None and file is not None:
        raise UsageError(
            say("Both --methods and --space were given.", "同时给出了 --methods 和 --space。"),
            say("Leave one of the two out.", "请去掉其中之一。"),
        )
    if file is not None:
        return read_space(file)
    names = [name.strip() for name in methods.split(",")] if methods else []
    return default_space(names, fixed=list(job.set))


def show_race(session: Session, raced: RaceResult) -> None:
    """Print the leaderboard, the winner, and why the race ended."""
    winner, adapter = raced.entries[0].configuration, raced.adapter
    _note_ending(raced)
    result = {
        "run": raced.run.id,
        "task": adapter.task,
        "end": raced.end,
        "winner": {
            "number": winner.number,
            "method": winner.method,
            "settings": dict(winner.settings),
            "eval_loss": adapter.metrics["eval_loss"],
        },
        "adapter": summary(adapter),
        "ladder": raced.leaderboard,
        "plot": str(raced.plot),
        "configurations": adapter.metrics["race"]["configurations"],
        "epochs": raced.plan.epochs,
        "tokens": raced.tokens,
        "judged_tokens": raced.evaluated_tokens,
        "seconds": raced.seconds,
        "budget_used": raced.budget_used,
    }
    rows = leaderboard_rows(raced.plan, raced.entries)
    session.table(result, leaderboard_header(raced.plan), rows)
    if session.json:
        return
    for line in (
        say(f"Winner: {winner.text}", f"优胜：{winner.text}"),
        report_line(adapter),
        say(
            f"Trained on {raced.tokens:,} tokens and evaluated on {raced.evaluated_tokens:,} in "
            f"{duration(raced.seconds)}.",
            f"共训练 {raced.tokens:,} 个词元，评估 {raced.evaluated_tokens:,} 个词元，"
            f"用时 {duration(raced.seconds)}。",
        )
        + _budget_used(raced),
        say(f"Plot of the leaderboard: {raced.plot}", f"排行榜图：{raced.plot}"),
        next_command(session, adapter),
    ):
        print(line)


def _budget_used(raced: RaceResult) -> str:
    if raced.budget_used is None:
        return ""
    return say(
        f" This is {raced.budget_used:.0%} of the budget.",
        f"占预算的 {raced.budget_used:.0%}。",
    )


def _note_ending(raced: RaceResult) -> None:
    name = raced.adapter.name
    endings = {
        "interrupted": say(
            f"Interrupted: the best so far is stored as {name}. A race cannot be resumed; the same "
            "command starts a new one.",
            f"已中断：当前最佳结果已保存为 {name}。竞赛不能继续，再次运行同一命令会重新开始。",
        ),
        "out of budget": say(
            f"The budget is used up and the race ended early: the best so far is stored as {name}.",
            f"预算已用完，竞赛提前结束：当前最佳结果已保存为 {name}。",
        ),
        "nobody left": say(
            "The losses of all remaining configurations exploded: the best before that is stored as "
            f"{name}.",
            f"剩余配置的损失全部发散：此前的最佳结果已保存为 {name}。",
        ),
    }
    if raced.end in endings:
        note(endings[raced.end])
