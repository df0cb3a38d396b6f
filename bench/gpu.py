"""One GPU: training speed and peak memory against PEFT's padded loop, in turn, in one process.

    python bench/gpu.py [--out FILE]

The models have the shapes of SmolLM2-135M and Qwen2.5-1.5B and random weights (speed and memory do not
depend on them). The rows are random tokens with the lengths of short requests (9 to 40) or of texts (60 to
500). Times cover whole steps, from the forward pass to the update, synchronized with the GPU; medians of
rounds.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import onebase
from onebase.adapters.methods import build_adapter
from onebase.engine.rows import TokenRow, by_budget, token_losses
from onebase.model.precision import choose

SHAPES = {
    "smollm2-135m": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        ),
    ),
    "qwen2.5-1.5b": (
        Qwen2ForCausalLM,
        Qwen2Config(
            vocab_size=151936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
    ),
}
PEERS = {
    "lora": peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    "prompt-tuning": peft.PromptTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
    "p-tuning": peft.PromptEncoderConfig(
        num_virtual_tokens=20,
        encoder_reparameterization_type="MLP",
        encoder_hidden_size=256,
        task_type="CAUSAL_LM",
    ),
    "p-tuning-v2": peft.PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
}
LENGTHS = {"short": (9, 40), "long": (60, 500)}
Step = Callable[[list[TokenRow]], None]


class Tokenizer:
    """The part of a tokenizer that building an adapter needs, for a model without a tokenizer."""

    eos_token_id, pad_token_id = 2, 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % 200 for letter in text]}


def model_of(shape: str) -> Any:
    kind, config = SHAPES[shape]
    torch.manual_seed(0)
    with torch.device("cuda"):
        return kind(config).bfloat16()


def rows_of(shape: str, lengths: str, count: int) -> list[TokenRow]:
    drawn = random.Random(0)
    vocabulary = SHAPES[shape][1].vocab_size
    rows = []
    for _ in range(count):
        size = drawn.randint(*LENGTHS[lengths])
        ids = tuple(drawn.randrange(3, vocabulary) for _ in range(size))
        asked = size // 2
        rows.append(TokenRow("it", ids, (False,) * asked + (True,) * (size - asked)))
    return rows


def our_step(shape: str, method: str, pack: int, precision: str, checkpointing: bool) -> Step:
    base = onebase.Base(model_of(shape), Tokenizer(), name=shape)
    if precision != "bf16":
        base.hold_in(choose(precision, device="cuda", stored=torch.bfloat16), "cuda")
    adapter = build_adapter(base, method, {}, init_text="Do it.", seed=0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3)

    def step(batch: list[TokenRow]) -> None:
        labels = sum(row.labels for row in batch)
        for group in by_budget(batch, pack):
            losses, _ = token_losses(
                base, group, {"it": adapter.contribution()}, checkpointing=checkpointing
            )
            (losses.sum() / labels).backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def their_step(shape: str, method: str) -> Step:
    model = peft.get_peft_model(model_of(shape), PEERS[method])
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)

    def step(batch: list[TokenRow]) -> None:
        width = max(len(row.ids) for row in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for at, row in enumerate(batch):
            size = len(row.ids)
            ids[at, :size] = torch.tensor(row.ids)
            mask[at, :size] = 1
            labels[at, :size] = torch.where(torch.tensor(row.loss_mask), ids[at, :size], -100)
        there = (part.cuda() for part in (ids, mask, labels))
        input_ids, attention_mask, label_ids = there
        model(input_ids=input_ids, attention_mask=attention_mask, labels=label_ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(step: Step, batches: list[list[TokenRow]]) -> float:
    """Real tokens per second."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for batch in batches:
        step(batch)
    torch.cuda.synchronize()
    tokens = sum(len(row.ids) for batch in batches for row in batch)
    return tokens / (time.perf_counter() - began)


def peak_of(make: Callable[[], Step], batch: list[TokenRow]) -> int:
    """Peak memory in MiB of building a side and running two steps."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = make()
    step(batch)
    step(batch)
    return (torch.cuda.max_memory_allocated() - before) >> 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    facts = {"gpu": torch.cuda.get_device_name(), "torch": str(torch.__version__)}

    def tell(**line: Any) -> None:
        text = json.dumps({**line, **facts})
        print(text, flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    batch = arguments.batch
    for shape in arguments.shapes.split(","):
        for method in PEERS:
            for lengths in LENGTHS:
                rows = rows_of(shape, lengths, batch * arguments.steps)
                batches = [rows[at : at + batch] for at in range(0, len(rows), batch)]
                sides = {
                    "ours, packs of 1024": our_step(shape, method, 1024, "bf16", False),
                    "ours, packs of 16384": our_step(shape, method, 16384, "bf16", False),
                    "peft": their_step(shape, method),
                }
                for step in sides.values():
                    timed(step, batches)  # warm up
                rounds = [
                    {name: timed(step, batches) for name, step in sides.items()}
                    for _ in range(arguments.rounds)
                ]
                speeds = {
                    name: round(statistics.median(turn[name] for turn in rounds)) for name in sides
                }
                ratios = [
                    max(speed for name, speed in turn.items() if name != "peft") / turn["peft"]
                    for turn in rounds
                ]
                tell(
                    shape=shape,
                    method=method,
                    rows=lengths,
                    tokens_per_second=speeds,
                    ratio=round(statistics.median(ratios), 2),
                )
                del sides, step
        long = rows_of(shape, "long", batch)
        for method, precision, checkpointing in (
            ("lora", "bf16", False),
            ("lora", "bf16", True),
            ("qlora", "nf4", False),
            ("qlora", "nf4", True),
            ("p-tuning-v2", "bf16", False),
            ("p-tuning-v2", "nf4", True),
        ):

            def make(
                method: str = method, precision: str = precision, again: bool = checkpointing
            ) -> Step:
                return our_step(shape, method, 16384, precision, again)  # noqa: B023

            mib = peak_of(make, long)
            tell(
                shape=shape,
                method=method,
                precision=precision,
                gradient_checkpointing=checkpointing,
                peak_mib=mib,
            )
        tell(
            shape=shape,
            method="lora",
            peer="peft",
            precision="bf16",
            peak_mib=peak_of(lambda: their_step(shape, "lora"), long),  # noqa: B023
        )


if __name__ == "__main__":
    main()
