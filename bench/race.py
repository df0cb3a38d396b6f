"""Does a race find the best? Its winner against all of its configurations trained to the end.

    python bench/race.py --data DIR --out FILE.jsonl [--part race|all|report] [--sets snips,e2e]

`race` races 24 configurations at each data set; `all` trains the same ones to the end, some at a
time (`--group`), with the same seed, rows and schedule, each once: given again after an
interruption, it goes on with those that are not in the file yet; `--until SECONDS` stops before
a group that would begin later, and `--share 1/3` trains every third, beside processes that train
the others into the same file. `report` prints what came of it: the winner's held-out loss over
the best of all, and what the race cost over what all of them cost, in tokens learned from plus
tokens judged by. Without --part: all three in turn.
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
from onebase.search.race import race
from onebase.search.space import default_space
from onebase.search.successive_halving import candidate_job
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
    """The first rows to learn from, the next ones held out."""
    file, step, (asked, said), instruction = SETS[name]
    lines = (arguments.data / file).read_text(encoding="utf-8").splitlines()[::step]
    found = [{"input": row[asked], "output": row[said]} for row in map(json.loads, lines)]
    ends = (arguments.rows, arguments.rows + arguments.held_out)
    paths = []
    for part, rows in (("train", found[: ends[0]]), ("held", found[ends[0] : ends[1]])):
        path = folder / f"{name}-{part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths.append(path)
    settings = {"epochs": arguments.epochs, "batch_size": arguments.batch}
    return onebase.Job(
        name, paths[0], held_out=paths[1], instruction=instruction, seed=0, set=settings
    )


class Evaluation(Observer):
    """A watcher that keeps each job's held-out losses."""

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
    result = race(
        job_of(name, arguments, folder),
        base=base,
        workspace=onebase.Workspace(folder / "ws"),
        count=arguments.configs,
    )
    if arguments.plots:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        (arguments.plots / f"race-{name}.png").write_bytes(result.plot.read_bytes())
    write(
        arguments.out,
        part="race",
        set=name,
        winner=result.entries[0].configuration.number,
        text=result.entries[0].configuration.text,
        loss=result.adapter.metrics["eval_loss"],
        learned=result.tokens,
        judged=result.evaluated_tokens,
        seconds=result.seconds,
        planned_share=result.plan.share,
        ladder=result.leaderboard,
    )


def run_all(name: str, base: onebase.Base, arguments: argparse.Namespace, folder: Path) -> None:
    done = {line["number"] for line in lines_of(arguments.out, "all", name)}
    job = job_of(name, arguments, folder)
    share, of = map(int, arguments.share.split("/"))
    stop = [
        item
        for item in default_space().first(arguments.configs)
        if item.number not in done and item.number % of == share % of
    ]
    for at in range(0, len(stop), arguments.group):
        if time.monotonic() - BEGAN > arguments.until:
            return
        group = stop[at : at + arguments.group]
        states = [JobState(candidate_job(job, item, arguments.epochs), base) for item in group]
        observer = Evaluation()
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
    result = lines_of(arguments.out, "race", name)
    trained = lines_of(arguments.out, "all", name)
    if not result or len(trained) < arguments.configs:
        print(f"{name}: race {bool(result)}, {len(trained)} of {arguments.configs} trained")
        return
    sound = sorted((line for line in trained if line["loss"]), key=lambda line: line["loss"])
    rank = [line["number"] for line in sound].index(result[0]["winner"]) + 1
    cost = sum(line["learned"] + line["judged"] for line in trained)
    result = {
        "set": name,
        "configurations": len(trained),
        "winner": result[0]["text"],
        "winner_loss": result[0]["loss"],
        "best_of_all": sound[0]["text"],
        "best_loss": sound[0]["loss"],
        "loss_ratio": result[0]["loss"] / sound[0]["loss"],
        "true_rank_of_the_winner": rank,
        "cost_ratio": (result[0]["learned"] + result[0]["judged"]) / cost,
        "time_ratio": result[0]["seconds"] / sum(line["seconds"] for line in trained),
    }
    print(json.dumps(result, indent=1), flush=True)


BEGAN = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
    parser.add_argument("--plots", type=Path, help="a folder for the ladders' pictures")
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
