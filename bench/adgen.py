"""ADGEN product descriptions in Chinese: held-out loss, BLEU-4 and ROUGE-L of the base and each method.

    OMP_WAIT_POLICY=PASSIVE python bench/adgen.py --data DIR/adgen_dev.jsonl --out FILE.jsonl

Rows are split by content, so that no product is in both splits. All methods train together on one
base and are evaluated on the same held-out rows.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

import onebase
from onebase.engine.sampling import Sampling
from onebase.runs.observer import Observer

TEMPLATE = "商品：{input}\n广告："
INIT = "商品广告文案：根据商品的类型、材质、颜色和风格，写一段吸引人的中文广告。"


class Characters:
    """ROUGE tokenizer for Chinese: one token per character."""

    def tokenize(self, text: str) -> list[str]:
        return [character for character in text if not character.isspace()]


class Progress(Observer):
    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        if step % 25 == 0:
            print(task, step, round(record["loss"], 3), flush=True)

    def evaluated(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        print(task, record, flush=True)


def split_by_content(file: Path, train_rows: int, held_out: int) -> tuple[list, list]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    contents = list(dict.fromkeys(row["content"] for row in rows))
    random.Random(0).shuffle(contents)
    held = set(contents[:held_out])
    train = [row for row in rows if row["content"] not in held]
    random.Random(1).shuffle(train)
    return train[:train_rows], [row for row in rows if row["content"] in held]


def example(row: dict[str, str]) -> str:
    """A row as the model sees it."""
    return TEMPLATE.format(input=row["content"]) + row["summary"] + "\n"


def scores(answers: list[str], references: list[str]) -> dict[str, float]:
    rouge = RougeScorer(["rougeL"], tokenizer=Characters())
    pairs = zip(references, answers, strict=True)
    each = [rouge.score(target, prediction)["rougeL"].fmeasure for target, prediction in pairs]
    return {
        "bleu4": BLEU(tokenize="zh").corpus_score(answers, [references]).score,
        "rouge_l": 100 * sum(each) / len(each),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="gemma3-270m")
    parser.add_argument("--rows", type=int, default=900)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--answers", type=int, default=40)
    parser.add_argument("--methods", default="lora,p-tuning,p-tuning-v2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--example", action="store_true", help="start virtual tokens from a training row"
    )
    parser.add_argument("--set", default="{}", help="JSON of settings for every job")
    arguments = parser.parse_args()
    arguments.out.touch()  # before hours of work
    torch.set_num_threads(arguments.threads)
    base = onebase.Base.load(arguments.base)
    train, held = split_by_content(arguments.data, arguments.rows, arguments.held_out)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, rows in (("train", train), ("held", held)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            files.append(Path(folder) / f"{name}.jsonl")
            files[-1].write_text(text, encoding="utf-8")
        jobs = []
        for method in arguments.methods.split(","):
            settings = {"epochs": arguments.epochs, "warmup": 10, **json.loads(arguments.set)}
            if method not in ("lora", "qlora", "ia3", "full"):
                settings["init_text"] = example(train[0]) if arguments.example else INIT
            job = onebase.Job(
                method.replace("+", "-"),
                files[0],
                method,
                held_out=files[1],
                template=TEMPLATE,
                set=settings,
            )
            jobs.append(job)
        began = time.perf_counter()
        stored = onebase.train(
            jobs,
            base=base,
            workspace=onebase.Workspace(Path(folder) / "w"),
            observer=Progress(),
        )
        seconds = time.perf_counter() - began
        engine = onebase.Engine(base, stored)
        sampling = Sampling(max_tokens=96)
        asked = list({row["content"]: row for row in held}.values())[: arguments.answers]
        template = stored[0].record["template"]
        bare = onebase.data.template.Template.from_config(base.tokenizer, template)
        engine.tasks.load_full("bare", base, bare)
        with arguments.out.open("a", encoding="utf-8") as out:
            for name in ["bare", *(item.task for item in stored)]:
                requests = [(name, row["content"]) for row in asked]
                answers = [answer.text for answer in engine.generate(requests, sampling)]
                result = {
                    "method": name,
                    "rows": len(train),
                    "epochs": arguments.epochs,
                    "seconds_together": seconds,
                    **scores(answers, [row["summary"] for row in asked]),
                    "example": answers[0],
                }
                for item in stored:
                    if item.task == name:
                        loss, before = item.metrics["eval_loss"], item.metrics["base_eval_loss"]
                        result |= {"loss": loss, "base_loss": before, "cut": 1 - loss / before}
                        result |= {"options": item.record["options"]}
                out.write(json.dumps(result, ensure_ascii=False) + "\n")
                print(result, flush=True)


if __name__ == "__main__":
    main()
