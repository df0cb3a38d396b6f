"""LoRA on the top third of the layers over the frozen trunk, against PEFT's LoRA on all layers.

    python bench/top.py --peer VENV/bin/python --data DIR --out FILE.jsonl

Both train on SNIPS intents (210 rows, batch 8) for 5 epochs, in turn, each in a process of its own. After each
epoch the held-out loss per token is recorded. This evaluation is not timed; the one pass for the trunk is.
Reported are the ratio of the times for all epochs, and of the times to PEFT's lowest held-out loss.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import own_defaults

BENCH = Path(__file__).parent


def work(arguments: argparse.Namespace) -> None:
    """Run our side; prints one JSON line for each epoch."""
    import torch

    import onebase
    from onebase.training.job_state import JobState
    from onebase.training.loop import mean_losses, shared_trunk, step_together
    from snips_onebase import INSTRUCTION, Progress, rows_of

    torch.set_num_threads(arguments.threads)
    base = onebase.Base.load(arguments.base)
    with tempfile.TemporaryDirectory() as folder:
        files = {"train": 30, "validate": 20}
        for name, each in files.items():
            rows = rows_of(arguments.data / f"snips_{name}.jsonl", each)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (Path(folder) / name).with_suffix(".jsonl").write_text(text, encoding="utf-8")
        settings = {"epochs": arguments.epochs, "warmup": 10, **json.loads(arguments.set)}
        data, held = (Path(folder) / f"{name}.jsonl" for name in files)
        job = onebase.Job("it", data, "lora", INSTRUCTION, held_out=held, set=settings)
        job_state = JobState(job, base)
    seconds = 0.0
    began = time.perf_counter()
    trunk = shared_trunk(base, [job_state])
    while not job_state.done:
        for _ in range(job_state.steps_an_epoch):
            step_together(base, [job_state], Progress(), trunk=trunk)
        seconds += time.perf_counter() - began
        job_state.adapter.eval()
        contributions = {"it": job_state.adapter.contribution()}
        depths = {"it": job_state.depth}
        held_out = job_state.data.held_out
        losses = mean_losses(base, held_out, contributions, depths=depths, trunk=trunk)
        print(json.dumps({"epoch": job_state.epoch, "seconds": seconds, "loss": losses["it"]}))
        began = time.perf_counter()


def ours(arguments: argparse.Namespace) -> list[dict[str, float]]:
    command = [sys.executable, __file__, "--work", "--set", arguments.set]
    command += ["--data", str(arguments.data), "--base", arguments.base]
    command += ["--epochs", str(arguments.epochs), "--threads", str(arguments.threads)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=own_defaults()
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def theirs(arguments: argparse.Namespace) -> list[dict[str, float]]:
    from onebase.model.fetch import resolve

    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as file:
        command = [arguments.peer, str(BENCH / "snips_peft.py"), "--methods", "lora"]
        command += ["--data", str(arguments.data), "--base", str(resolve(arguments.base))]
        command += ["--epochs", str(arguments.epochs), "--threads", str(arguments.threads)]
        command += ["--eval-at", ",".join(str(at + 1) for at in range(arguments.epochs))]
        command += ["--loss-alone", "--out", file.name]
        subprocess.run(command, check=True, env=own_defaults())
        lines = [json.loads(line) for line in file]
    return [
        {"epoch": it["epochs"], "seconds": it["train_seconds"], "loss": it["loss_per_token"]}
        for it in lines
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="a Python with torch, transformers and peft")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", default='{"layers": "top:10"}', help="JSON of our settings")
    parser.add_argument("--work", action="store_true", help="run as our side")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return
    times, to_loss = [], []
    for _ in range(arguments.rounds):
        our_epochs, peer_epochs = ours(arguments), theirs(arguments)
        best = min(peer_epochs, key=lambda epoch: epoch["loss"])
        reached = [epoch["seconds"] for epoch in our_epochs if epoch["loss"] <= best["loss"]]
        times.append(peer_epochs[-1]["seconds"] / our_epochs[-1]["seconds"])
        to_loss.append(best["seconds"] / reached[0] if reached else 0.0)
        line = {
            "ours": our_epochs,
            "peft": peer_epochs,
            "times": times[-1],
            "to_same_loss": to_loss[-1],
        }
        print(json.dumps(line), flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
    print({"times": statistics.median(times), "to_same_loss": statistics.median(to_loss)})


if __name__ == "__main__":
    main()
