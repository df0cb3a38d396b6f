"""Eight prototypes with four methods on one data set, against eight PEFT runs one after another.

    python bench/prototypes.py --peer VENV/bin/python --data DIR --out FILE.jsonl

Three variants in turn, each process measured from start to end: PEFT's plain padded loop, one process per
prototype; ours, all eight together, with the same epochs and no early stopping; and our race of the same
eight, which evaluates on held-out rows and stops the worse ones. Reported are the ratios of wall time and of
peak memory (the largest resident set of any process; for PEFT, that of its largest single run).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import own_defaults

BENCH = Path(__file__).parent
# Two of each method. PEFT's side uses the method's plain settings, which cost the same.
PROTOTYPES = [
    ("lora", "lora", {"learning_rate": 1e-3}),
    ("lora", "lora", {"learning_rate": 4e-3}),
    ("prompt-tuning", "prompt-tuning", {"learning_rate": 3e-2}),
    ("prompt-tuning", "prompt-tuning", {"learning_rate": 1e-1}),
    ("p-tuning", "p-tuning", {"learning_rate": 3e-3}),
    ("p-tuning", "p-tuning", {"learning_rate": 1e-2}),
    ("p-tuning-v2", "prefix", {"learning_rate": 1e-2}),
    ("p-tuning-v2", "prefix", {"learning_rate": 3e-2}),
]


def work(arguments: argparse.Namespace) -> None:
    """Run our side, all together or as a race."""
    import torch

    import onebase
    from onebase.search.race import race
    from onebase.search.space import Configuration, Space
    from snips_onebase import INSTRUCTION, rows_of

    torch.set_num_threads(arguments.threads)
    base = onebase.Base.load(arguments.base)
    with tempfile.TemporaryDirectory() as folder:
        data, held = Path(folder) / "train.jsonl", Path(folder) / "held.jsonl"
        rows = rows_of(arguments.data / "snips_train.jsonl", 30)[: arguments.rows]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        rows = rows_of(arguments.data / "snips_validate.jsonl", 5)
        held.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        common = {"epochs": arguments.epochs, "warmup": 10}
        workspace = onebase.Workspace(Path(folder) / "workspace")
        if arguments.work == "together":
            jobs = [
                onebase.Job(
                    f"prototype-{at}",
                    data,
                    method,
                    INSTRUCTION,
                    set={**common, "held_out": 0, **settings},
                )
                for at, (method, _, settings) in enumerate(PROTOTYPES)
            ]
            onebase.train(jobs, base=base, workspace=workspace)
        else:
            entrants = [
                Configuration(at, method, settings)
                for at, (method, _, settings) in enumerate(PROTOTYPES, start=1)
            ]
            job = onebase.Job("it", data, instruction=INSTRUCTION, held_out=held, set=common)
            raced = race(
                job,
                base=base,
                workspace=workspace,
                space=Space(tuple(entrants)),
                count=len(entrants),
            )
            print(
                json.dumps(
                    {"ladder": raced.leaderboard, "loss": raced.adapter.metrics["eval_loss"]}
                )
            )


def whole(command: list[str]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process, from start to end."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own_defaults()
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with {status}")
    return time.perf_counter() - began, 1024 * usage.ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="a Python with torch, transformers and peft")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=105)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", choices=["together", "race"], help="run as our side")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return
    from onebase.model.fetch import resolve

    shared = ["--data", str(arguments.data), "--threads", str(arguments.threads)]
    shared += ["--epochs", str(arguments.epochs)]
    ours = [sys.executable, __file__, *shared, "--rows", str(arguments.rows)]
    rounds = []
    for _ in range(arguments.rounds):
        peer_seconds, peer_bytes = 0.0, 0
        for _, method, _ in PROTOTYPES:
            command = [arguments.peer, str(BENCH / "snips_peft.py"), *shared]
            command += ["--base", str(resolve(arguments.base)), "--out", os.devnull]
            command += ["--methods", method, "--limit", str(arguments.rows), "--eval-at", "0"]
            seconds, peak = whole(command)
            peer_seconds, peer_bytes = peer_seconds + seconds, max(peer_bytes, peak)
        line: dict[str, float] = {"peft": peer_seconds, "peft_mb": peer_bytes / 1e6}
        for way in ("together", "race"):
            seconds, peak = whole([*ours, "--work", way])
            line |= {way: seconds, f"{way}_mb": peak / 1e6}
            line |= {f"{way}_time": seconds / peer_seconds, f"{way}_memory": peak / peer_bytes}
        rounds.append(line)
        print({key: round(value, 3) for key, value in line.items()}, flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
    print({key: round(statistics.median(one[key] for one in rounds), 3) for key in rounds[0]})


if __name__ == "__main__":
    main()
