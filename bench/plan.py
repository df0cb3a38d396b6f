"""Compares the estimates of `onebase plan` with what `onebase train` then takes.

    python bench/plan.py [--base smollm2-135m] [--only lora,full] [--threads 2] [--out FILE.jsonl]

Each configuration is planned, then trained in a new workspace, on the demo's data. The peak resident
memory of the training process and its time from start to end are measured. Errors are those of the
plan, in percent of the measured values. The bars are 15 % for memory and 25 % for time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parents[1] / "src/onebase/demo/en"
INSTRUCTION = "Answer as the customer would like it."


def job(task: str, method: str, **settings: Any) -> dict[str, Any]:
    return {
        "task": task,
        "data": str(DATA / f"{task}.jsonl"),
        "held_out": str(DATA / f"{task}.heldout.jsonl"),
        "method": method,
        "instruction": INSTRUCTION,
        "set": settings,
    }


CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "lora": [job("support", "lora", epochs=3)],
    "lora-top-third": [job("summary", "lora", layers="top:10", epochs=3)],
    "lora-checkpointing": [job("email", "lora", gradient_checkpointing=True, epochs=1)],
    "qlora": [job("support", "qlora", epochs=1)],
    "full": [job("product", "full", batch_size=4, epochs=1)],
    "prompt-tuning": [job("social", "prompt-tuning", epochs=2)],
    "p-tuning-v2": [job("email", "p-tuning-v2", epochs=2)],
    "together": [
        job("support", "ia3", batch_size=4, epochs=1),
        job("product", "p-tuning", batch_size=4, epochs=2),
    ],
}


def command(*arguments: str, threads: int) -> dict[str, Any]:
    """Run `onebase` in a new process; returns its JSON, seconds and peak resident bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "LC_ALL": "C"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", "from onebase.cli.app import main; main()", *arguments],
            stdout=out,
            stderr=err,
            env=environment,
        )
        # This process is small, so the child's peak is not inherited from it.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        out.seek(0)
        err.seek(0)
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"onebase {' '.join(arguments)}: {err.read()[-2000:]}")
        # Bytes on macOS, KiB elsewhere.
        unit = 1 if sys.platform == "darwin" else 1024
        return {"json": json.load(out), "seconds": seconds, "peak": unit * usage.ru_maxrss}


def compare(name: str, base: str, threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        tasks = Path(folder) / "tasks.yaml"
        tasks.write_text(yaml.safe_dump({"jobs": CONFIGURATIONS[name]}), encoding="utf-8")
        flags = ("-c", str(tasks), "--base", base, "--workspace", f"{folder}/ws", "--json")
        planned = command("plan", *flags, threads=threads)
        trained = command("train", *flags, threads=threads)
    plan = planned["json"]
    return {
        "configuration": name,
        "methods": [item["method"] for item in CONFIGURATIONS[name]],
        "verdict": plan["verdict"],
        "planned_mb": round(plan["memory_bytes"] / 1e6),
        "actual_mb": round(trained["peak"] / 1e6),
        "memory_error_percent": percent(plan["memory_bytes"], trained["peak"]),
        "planned_seconds": round(plan["seconds"], 1),
        "actual_seconds": round(trained["seconds"], 1),
        "time_error_percent": percent(plan["seconds"], trained["seconds"]),
        "plan_took_seconds": round(planned["seconds"], 1),
        "threads": threads,
    }


def percent(predicted: float, actual: float) -> float:
    return round(100 * (predicted / actual - 1), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument(
        "--only", default=",".join(CONFIGURATIONS), help="names, separated by commas"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    worst = {"memory_error_percent": 0.0, "time_error_percent": 0.0}
    for name in arguments.only.split(","):
        result = compare(name, arguments.base, arguments.threads)
        worst = {key: max(value, abs(result[key])) for key, value in worst.items()}
        line = json.dumps(result)
        print(line, flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
    print(json.dumps({"worst": worst}))


if __name__ == "__main__":
    main()
