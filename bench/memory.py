"""Peak memory of training, for each method and precision.

    python bench/memory.py [--base smollm2-135m] [--steps 4] [--out FILE.jsonl]

Each configuration runs in a process of its own. Reported is its peak resident memory above that of an
idle process that has imported the same libraries.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIGURATIONS = [
    ("full", "fp32", {}),
    ("lora", "fp32", {}),
    ("lora", "fp32", {"gradient_checkpointing": True}),
    ("lora", "bf16", {}),
    ("lora", "int8", {}),
    ("qlora", "nf4", {}),
    ("qlora", "nf4", {"gradient_checkpointing": True}),
    ("ia3", "fp32", {}),
    ("prompt-tuning", "fp32", {}),
    ("p-tuning", "fp32", {}),
    ("p-tuning-v2", "fp32", {}),
    ("p-tuning-v2", "nf4", {}),
    ("p-tuning-v2", "nf4", {"gradient_checkpointing": True}),
    ("lora+p-tuning+p-tuning-v2", "nf4", {"gradient_checkpointing": True}),
]


def peak() -> int:
    """This process's peak resident memory in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(arguments: argparse.Namespace) -> None:
    """Train some steps in this process and print the peak above the idle process."""
    import bitsandbytes  # noqa: F401  # part of the idle process, whatever the precision
    import peft  # noqa: F401
    import torch

    import onebase
    from onebase.cli.demo_report import demo_folder
    from onebase.runs.observer import Observer
    from onebase.training.job_state import JobState
    from onebase.training.loop import step_together

    torch.set_num_threads(arguments.threads)
    idle = peak()
    base = onebase.Base.load(arguments.base, precision=arguments.precision)
    loaded = peak() - idle

    class Quiet(Observer):
        def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
            print(json.dumps({"loss": record["loss"]}), file=sys.stderr)

    settings = {"batch_size": 8, "held_out": 0, **json.loads(arguments.set)}
    job = onebase.Job(
        "it", demo_folder("en") / "summary.jsonl", arguments.method, "Sum it up.", set=settings
    )
    state = JobState(job, base)
    tokens = 0
    for _ in range(arguments.steps):
        step_together(state.base, [state], Quiet())
        tokens = state.tokens
    print(
        json.dumps(
            {
                "method": arguments.method,
                "precision": str(base.precision),
                **json.loads(arguments.set),
                "peak_mb": round((peak() - idle) / 1e6),
                "loaded_mb": round(loaded / 1e6),
                "idle_mb": round(idle / 1e6),
                "trainable": state.adapter.trainable(),
                "tokens_a_step": tokens // arguments.steps,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--method", help="measure this one, in this process")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--set", default="{}")
    arguments = parser.parse_args()
    if arguments.method:
        measure(arguments)
        return
    for method, precision, settings in CONFIGURATIONS:
        command = [sys.executable, __file__, "--base", arguments.base, "--method", method]
        command += ["--precision", precision, "--set", json.dumps(settings)]
        command += ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
        with tempfile.TemporaryFile("w+") as errors:
            result = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False
            )
            errors.seek(0)
            line = result.stdout.strip() or f"{command}: {errors.read()[-500:]}"
        print(line, flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as out:
                out.write(line + "\n")


if __name__ == "__main__":
    main()
