"""PPO on one base against TRL 1.12.0's PPOTrainer, and against supervised training of the policy.

    python bench/ppo.py --peer VENV/bin/python --trl DIR --out FILE.jsonl

The policy is a LoRA with r=8 on all linear layers; reward and value models are on the same base. 16 prompts
per step, 24 tokens per answer, 2 epochs, one optimizer step per epoch, two threads. Each side runs in a
process of its own, in turn. Reported are the median seconds of a step (without the first) and the peak
resident memory; for our side also that of supervised training with the same adapter on rows of about the
same length. DIR contains trl==1.12.0
(`pip install --target DIR --no-deps trl==1.12.0`).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from speed import own_defaults

BENCH = Path(__file__).parent
TEXT = "the film is a slow but honest story about two friends and their small town"
WORDS = TEXT.split(" ")


def prompts_file(folder: Path, count: int) -> Path:
    file = folder / "prompts.jsonl"
    rows = [" ".join(WORDS[at % 9 : at % 9 + 3 + at % 4]) + f" {at}" for at in range(count)]
    file.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows), encoding="utf-8")
    return file


def work(arguments: argparse.Namespace) -> None:
    """Run our side: PPO with a reward model, or supervised training of the same policy."""
    import torch

    import onebase
    from onebase.runs.observer import Observer

    torch.set_num_threads(arguments.threads)
    base = onebase.Base.load(arguments.base)
    marks = [time.perf_counter()]

    class Clock(Observer):
        def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
            if "reward" in record:
                marks.append(time.perf_counter())
            elif "eval_reward" in record:  # an evaluation is not part of a step
                marks[-1] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        workspace = onebase.Workspace(Path(folder) / "w")
        prompts = prompts_file(Path(folder), arguments.batch * arguments.steps + 8)
        if arguments.work == "sft":
            rows = Path(folder) / "rows.jsonl"
            text = " ".join(WORDS)
            rows.write_text(
                "".join(
                    json.dumps({"input": f"the film {at}", "output": f"{text} {text[:40]}"}) + "\n"
                    for at in range(arguments.batch * 4)
                ),
                encoding="utf-8",
            )
            settings = {"batch_size": arguments.batch, "epochs": 1}
            job = onebase.Job("it", rows, "lora", template="{input}", set=settings)
            onebase.train([job], base=base, workspace=workspace)
        else:
            rated = Path(folder) / "rated.jsonl"
            rated.write_text(
                "".join(
                    json.dumps({"text": f"{text} {at}", "rating": at % 5}) + "\n"
                    for at, text in enumerate(WORDS * 4)
                ),
                encoding="utf-8",
            )
            quality = onebase.AlignJob("quality", rated, "lora", set={"epochs": 1})
            onebase.train_reward(quality, base=base, workspace=workspace)
            settings = {
                "steps": arguments.steps,
                "prompts": arguments.batch,
                "minibatch": arguments.batch,
                "epochs": arguments.epochs,
                "max_tokens": arguments.tokens,
                "min_tokens": arguments.tokens,
                "judge_every": 1000,
                "judge_answers": 8,
            }
            job = onebase.AlignJob("it", prompts, "lora", template="{input}", set=settings)
            onebase.train_ppo(job, "quality", base=base, workspace=workspace, observer=Clock())
    seconds = [b - a for a, b in pairwise(marks)]
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def side(command: list[str], **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**own_defaults(), **environment},
        check=True,
    )
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="a Python with torch, transformers, peft, datasets")
    parser.add_argument("--trl", type=Path, help="a folder with trl 1.12.0")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", choices=["ppo", "sft"], help="run as our side")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return
    from onebase.model.fetch import resolve

    shared = []
    for key in ("batch", "steps", "epochs", "tokens", "threads"):
        shared += [f"--{key}", str(getattr(arguments, key))]
    ours = [sys.executable, __file__, "--base", arguments.base, *shared, "--work"]
    with tempfile.TemporaryDirectory() as folder:
        prompts = prompts_file(Path(folder), arguments.batch * arguments.steps)
        theirs = [arguments.peer, str(BENCH / "ppo_trl.py"), "--base", str(resolve(arguments.base))]
        theirs += ["--prompts", str(prompts), *shared]
        for _ in range(arguments.rounds):
            sides = {
                "ours": side([*ours, "ppo"]),
                "supervised": side([*ours, "sft"]),
                "trl": side(theirs, PYTHONPATH=str(arguments.trl)),
            }
            steps = {
                name: statistics.median(sides[name]["seconds"][1:]) for name in ("ours", "trl")
            }
            line = {
                "base": arguments.base,
                "step_seconds": steps,
                "time_ratio": steps["ours"] / steps["trl"],
                "peak_mib": {name: item["peak_bytes"] >> 20 for name, item in sides.items()},
                "memory_over_supervised": sides["ours"]["peak_bytes"]
                / sides["supervised"]["peak_bytes"],
                "memory_over_trl": sides["ours"]["peak_bytes"] / sides["trl"]["peak_bytes"],
                "threads": arguments.threads,
            }
            print(json.dumps(line), flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
