"""Does a race find the best configuration? Its winner against all configurations trained to the end.

    python bench/race.py --data DIR --out FILE.jsonl [--part race|all|report] [--sets snips,e2e]

- `race` races 24 configurations on each data set.
- `all` trains the same configurations to the end, `--group` at a time, with the same seed, rows and
  schedule. After an interruption, the same command continues with those that are not in the file yet.
  `--until SECONDS` starts no group after that time. `--share 1/3` trains every third configuration, so
  that other processes can train the rest into the same file.
- `report` prints the winner's held-out loss over the best of all, and the cost of the race over the cost
  of training all, in training tokens plus evaluation tokens.

Without --part, all three run in turn.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import onebase
from onebase.runs.observer import Observer
from onebase.search.budget import tokens_of
from onebase.search.candidate import candidate_job
from onebase.search.race import race
from onebase.search.space import default_space
from onebase.training.job_state import JobState
from onebase.training.loop import train_together

SETS = {
    # file, every n-th row, columns, instruction
    "snips": ("snips_train.jsonl", 13, ("text", "intent"), "Classify the intent of the request."),
    "e2e": ("e2e_dev.jsonl", 9, ("mr", "ref"), "Describe the restaurant in one sentence."),
    "banking77": ("banking77_train.jsonl", 13, ("text", "category"), "Name the customer's intent."),
    "gsm8k": ("gsm8k_test.jsonl", 3, ("question", "answer"), "Solve the problem step by step."),
}


def job_of(name: str, arguments: argparse.Namespace, folder: Path) -> onebase.Job:
    """A job on the first rows, with the next rows held out."""
    file, step, (input_column, output_column), instruction = SETS[name]
    lines = (arguments.data / file).read_text(encoding="utf-8").splitlines()[::step]
    examples = [
        {"input": row[input_column], "output": row[output_column]} for row in map(json.loads, lines)
    ]
    ends = (arguments.rows, arguments.rows + arguments.held_out)
    paths = []
    for part, rows in (("train", examples[: ends[0]]), ("held", examples[ends[0] : ends[1]])):
        path = folder / f"{name}-{part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths.append(path)
    settings = {"epochs": arguments.epochs, "batch_size": arguments.batch}
    return onebase.Job(
        name, paths[0], held_out=paths[1], instruction=instruction, seed=0, set=settings
    )


class HeldOutLosses(Observer):
    """An observer that records the held-out losses of each job."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {}

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        self.losses.setdefault(task, []).append(record["eval_loss"])


def write(out: Path, **line: Any) -> None:
    with out.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**line, "torch": str(torch.__version__)}) + "\n")
    shown = {key: value for key, value in line.items() if key != "ladder"}
    print(json.dumps(shown), flush=True)


def lines_of(out: Path, part: str, name: str) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    lines = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if (line["part"], line["set"]) == (part, name)]


def run_race(name: str, base: onebase.Base, arguments: argparse.Namespace, folder: Path) -> None:
    if lines_of(arguments.out, "race", name):
        return
    raced = race(
        job_of(name, arguments, folder),
        base=base,
        workspace=onebase.Workspace(folder / "ws"),
        count=arguments.configs,
    )
    if arguments.plots:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        (arguments.plots / f"race-{name}.png").write_bytes(raced.plot.read_bytes())
    write(
        arguments.out,
        part="race",
        set=name,
        winner=raced.entries[0].configuration.number,
        text=raced.entries[0].configuration.text,
        loss=raced.adapter.metrics["eval_loss"],
        learned=raced.tokens,
        judged=raced.evaluated_tokens,
        seconds=raced.seconds,
        planned_share=raced.plan.share,
        ladder=raced.leaderboard,
    )


def run_all(name: str, base: onebase.Base, arguments: argparse.Namespace, folder: Path) -> None:
    done = {line["number"] for line in lines_of(arguments.out, "all", name)}
    job = job_of(name, arguments, folder)
    share, of = map(int, arguments.share.split("/"))
    remaining = [
        item
        for item in default_space().first(arguments.configs)
        if item.number not in done and item.number % of == share % of
    ]
    for at in range(0, len(remaining), arguments.group):
        if time.monotonic() - BEGAN > arguments.until:
            return
        group = remaining[at : at + arguments.group]
        states = [JobState(candidate_job(job, item, arguments.epochs), base) for item in group]
        observer = HeldOutLosses()
        began = time.monotonic()
        train_together(states, observer)
        seconds = (time.monotonic() - began) / len(group)
        for item, state in zip(group, states, strict=True):
            losses = observer.losses.get(state.job.task, [])
            write(
                arguments.out,
                part="all",
                set=name,
                number=item.number,
                text=item.text,
                loss=min(losses, default=None),
                losses=losses,
                learned=state.tokens,
                judged=len(losses) * tokens_of(state.data.held_out),
                seconds=seconds,
            )


def report(name: str, arguments: argparse.Namespace) -> None:
    raced = lines_of(arguments.out, "race", name)
    trained = lines_of(arguments.out, "all", name)
    if not raced or len(trained) < arguments.configs:
        print(f"{name}: race {bool(raced)}, {len(trained)} of {arguments.configs} trained")
        return
    sound = sorted((line for line in trained if line["loss"]), key=lambda line: line["loss"])
    rank = [line["number"] for line in sound].index(raced[0]["winner"]) + 1
    cost = sum(line["learned"] + line["judged"] for line in trained)
    result = {
        "set": name,
        "configurations": len(trained),
        "winner": raced[0]["text"],
        "winner_loss": raced[0]["loss"],
        "best_of_all": sound[0]["text"],
        "best_loss": sound[0]["loss"],
        "loss_ratio": raced[0]["loss"] / sound[0]["loss"],
        "true_rank_of_the_winner": rank,
        "cost_ratio": (raced[0]["learned"] + raced[0]["judged"]) / cost,
        "time_ratio": raced[0]["seconds"] / sum(line["seconds"] for line in trained),
    }
    print(json.dumps(result, indent=1), flush=True)


BEGAN = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=["race", "all", "report"])
    parser.add_argument("--sets", default="snips,e2e")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--configs", type=int, default=24)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--until", type=float, default=float("inf"))
    parser.add_argument("--share", default="1/1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plots", type=Path, help="a folder for plots of the leaderboards")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = None if arguments.part == "report" else onebase.Base.load(arguments.base)
    for name in arguments.sets.split(","):
        with tempfile.TemporaryDirectory() as folder:
            if base and arguments.part in (None, "race"):
                run_race(name, base, arguments, Path(folder))
            if base and arguments.part in (None, "all"):
                run_all(name, base, arguments, Path(folder))
        report(name, arguments)


if __name__ == "__main__":
    main()
