"""The peer side of the SNIPS comparison: PEFT and transformers in a plain padded loop.

Needs torch, transformers==5.23.0 and peft==0.21.2, but not onebase:

    python bench/snips_peft.py --data DIR --base DIR --out peft.jsonl --threads 1

Each evaluation appends one JSON line. `loss` is the negative log-probability (nats) of the true
label and its end token, summed over a row and averaged over the held-out rows; `loss_per_token`
is averaged over their tokens. `train_seconds` and `tokens` (real tokens: no padding, no virtual
tokens) count from the start of the method's training, excluding evaluations.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

SYSTEM = "Classify the intent of the request."
END = "<|im_end|>"
IGNORE = -100
SEED, BATCH, WARMUP_STEPS, CLIP = 0, 8, 10, 1.0
TRAIN_PER_CLASS, HELD_OUT_PER_CLASS = 30, 20
LEARNING_RATES = {"prompt-tuning": 3e-2, "prefix": 1e-2, "p-tuning": 3e-3, "lora": 1e-3}

Row = dict[str, str]
Batch = dict[str, torch.Tensor]


def peft_config(method: str, base: str) -> PeftConfig:
    """The method's plain settings."""
    causal: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    soft = causal | {"num_virtual_tokens": 20}
    if method == "lora":
        return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **causal)
    if method == "prefix":
        return PrefixTuningConfig(**soft)
    if method == "p-tuning":
        return PromptEncoderConfig(
            encoder_reparameterization_type="MLP", encoder_hidden_size=256, **soft
        )
    return PromptTuningConfig(
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=SYSTEM,
        tokenizer_name_or_path=base,
        **soft,
    )


def read_rows(path: Path, per_class: int, limit: int | None) -> list[Row]:
    """The first rows of each class, in file order."""
    seen: Counter[str] = Counter()
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        seen[row["intent"]] += 1
        if seen[row["intent"]] <= per_class:
            rows.append(row)
    return rows[:limit]


class Renderer:
    """Turns rows into token ids, with context and answer separate, and into padded batches."""

    def __init__(self, base: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(base)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def context(self, text: str) -> list[int]:
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        return self.ids(
            self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )

    def answer(self, label: str) -> list[int]:
        return self.ids(label + END)

    def batch(self, rows: list[Row]) -> Batch:
        """Padded on the right, with labels on the answers only; each tensor [rows, width]."""
        pairs = [(self.context(row["text"]), self.answer(row["intent"])) for row in rows]
        shape = len(pairs), max(len(context) + len(answer) for context, answer in pairs)
        ids = torch.full(shape, self.tokenizer.pad_token_id)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE)
        for i, (context, answer) in enumerate(pairs):
            end = len(context) + len(answer)
            ids[i, :end] = torch.tensor(context + answer)
            mask[i, :end] = 1
            labels[i, len(context) : end] = torch.tensor(answer)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def label_scores(model: Any, renderer: Renderer, text: str, names: list[str]) -> torch.Tensor:
    """The log-probability of each label and its end token after the prompt: [labels]."""
    batch = renderer.batch([{"text": text, "intent": name} for name in names])
    # All rows share the prompt, so all answers start at the same position.
    targets = batch.pop("labels")[:, len(renderer.context(text)) :]
    logits = model(**batch, logits_to_keep=targets.shape[1] + 1).logits[:, :-1]
    picked = logits.log_softmax(-1).gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    return picked.masked_fill(targets == IGNORE, 0.0).sum(1)


def evaluate(
    model: Any, renderer: Renderer, rows: list[Row], names: list[str] | None
) -> dict[str, float]:
    """Accuracy of the best-scored label and mean loss of the true label; without `names`, the loss only."""
    model.eval()
    hits, loss, tokens = 0, 0.0, 0
    for row in rows:
        labels = names or [row["intent"]]
        scores = label_scores(model, renderer, row["text"], labels)
        true = labels.index(row["intent"])
        hits += int(scores.argmax()) == true
        loss -= float(scores[true])
        tokens += len(renderer.answer(row["intent"]))
    count = len(rows)
    return {"accuracy": hits / count, "loss": loss / count, "loss_per_token": loss / tokens}


def train_epoch(model: Any, optimizer: Any, scheduler: Any, batches: DataLoader) -> int:
    """Train one pass over the batches; returns its number of real tokens."""
    model.train()
    tokens = 0
    for batch in batches:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], CLIP)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        tokens += int(batch["attention_mask"].sum())
    return tokens


def run(method: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train one method; yields the record of each evaluation."""
    torch.manual_seed(SEED)
    renderer = Renderer(args.base)
    rows = read_rows(args.data / "snips_train.jsonl", TRAIN_PER_CLASS, args.limit)
    held_out = read_rows(args.data / "snips_validate.jsonl", HELD_OUT_PER_CLASS, args.limit)
    names = sorted({row["intent"] for row in rows + held_out})
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    model = get_peft_model(model, peft_config(method, args.base))
    order = torch.Generator().manual_seed(SEED)
    batches = DataLoader(rows, BATCH, shuffle=True, collate_fn=renderer.batch, generator=order)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATES[method], weight_decay=0.0)
    steps = args.epochs * len(batches)
    scheduler = get_linear_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
    seconds, tokens = 0.0, 0
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        tokens += train_epoch(model, optimizer, scheduler, batches)
        seconds += time.perf_counter() - start
        print(f"{method}: epoch {epoch} trained, {seconds:.1f} s", file=sys.stderr, flush=True)
        if epoch in args.eval_at:
            scores = evaluate(model, renderer, held_out, None if args.loss_alone else names)
            record = {"method": method, "epochs": epoch, **scores}
            yield record | {"train_seconds": round(seconds, 2), "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the snips files")
    parser.add_argument("--base", required=True, help="Hugging Face folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended")
    parser.add_argument("--methods", nargs="+", choices=LEARNING_RATES, default=[*LEARNING_RATES])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--eval-at", default="2,5", help="epochs, separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loss-alone", action="store_true", help="skip accuracy, which is slow")
    parser.add_argument("--limit", type=int, help="rows of each split, for a quick check")
    args = parser.parse_args()
    args.eval_at = {int(epoch) for epoch in args.eval_at.split(",")}
    torch.set_num_threads(args.threads)
    with args.out.open("a", encoding="utf-8") as out:
        for method in args.methods:
            for record in run(method, args):
                print(json.dumps(record), file=out, flush=True)


if __name__ == "__main__":
    main()
