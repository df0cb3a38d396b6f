"""SNIPS intents by label scoring, all methods trained together on one base.

    OMP_WAIT_POLICY=PASSIVE python bench/snips_onebase.py --data DIR --out FILE.jsonl [--epochs 5] [--methods …]

Rows, rendering and batch are those of snips_peft.py: 30 training rows per class, 20 held out.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import onebase
from onebase.runs.observer import Observer

INSTRUCTION = "Classify the intent of the request."


def rows_of(file: Path, each: int) -> list[dict[str, str]]:
    seen: Counter[str] = Counter()
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if seen[row["intent"]] < each:
            seen[row["intent"]] += 1
            rows.append({"text": row["text"], "label": row["intent"]})
    return rows


class Progress(Observer):
    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        print(task, record, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--methods", default="lora,prompt-tuning,p-tuning,p-tuning-v2")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", default="{}", help="JSON of settings for every job")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = onebase.Base.load(arguments.base)
    train, held = (
        rows_of(arguments.data / "snips_train.jsonl", 30),
        rows_of(arguments.data / "snips_validate.jsonl", 20),
    )
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, rows in (("train", train), ("held", held)):
            files.append(Path(folder) / f"{name}.jsonl")
            files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings = {"epochs": arguments.epochs, "warmup": 10, **json.loads(arguments.set)}
        jobs = [
            onebase.Job(
                task=method,
                data=files[0],
                held_out=None if settings.get("held_out") == 0 else files[1],
                method=method,
                instruction=INSTRUCTION,
                set=settings,
            )
            for method in arguments.methods.split(",")
        ]
        workspace = onebase.Workspace(Path(folder) / "workspace")
        began = time.perf_counter()
        stored = onebase.train(jobs, base=base, workspace=workspace, observer=Progress())
        seconds = time.perf_counter() - began
        engine = onebase.Engine(base, stored)
        with arguments.out.open("a", encoding="utf-8") as out:
            for adapter in stored:
                scores = engine.classify(adapter.task, [row["text"] for row in held])
                pairs = zip(scores, held, strict=True)
                right = sum(score[0].label == row["label"] for score, row in pairs)
                result = {
                    "method": adapter.task,
                    "epochs": arguments.epochs,
                    "accuracy": right / len(held),
                    "eval_loss": adapter.metrics["eval_loss"],
                    "seconds_together": seconds,
                    **adapter.record["options"],
                }
                out.write(json.dumps(result) + "\n")
                print(result, flush=True)


if __name__ == "__main__":
    main()
