"""Where the time of a training step goes, and how close its matrix products are to the machine's peak.

    python bench/step.py --data DIR [--base smollm2-135m] [--method lora]

The peak is the best of several square fp32 products, measured in the same run before and after the
steps. Times are the self times of each operation from torch's profiler. The profiler slows a step
slightly, so the time of a step without it is reported too.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import onebase
from onebase.adapters.methods import build_adapter
from onebase.engine.rows import TokenRow, by_budget, token_losses
from onebase.training.loop import pack_tokens
from speed import rows_of

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
ATTENTION = ("attention",)


def peak() -> float:
    """The best rate of a square matrix product, in GFLOP/s."""
    best = 0.0
    for size in (1024, 1536, 2048):
        left, right = torch.randn(size, size), torch.randn(size, size)
        for _ in range(6):
            began = time.perf_counter()
            torch.mm(left, right)
            best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def operations(shapes: list[Any], name: str) -> float:
    """Floating-point operations of a matrix product, from the shapes of its inputs."""
    left, right = (shapes[1], shapes[2]) if "add" in name else (shapes[0], shapes[1])
    batch = left[0] if len(left) == 3 else 1
    return 2.0 * batch * left[-2] * left[-1] * right[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--set", default="{}")
    parser.add_argument("--rows", default="snips", choices=["snips", "adgen"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = onebase.Base.load(arguments.base)
    adapter = build_adapter(
        base, arguments.method, json.loads(arguments.set), init_text="Do it.", seed=0
    )
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3)
    rows = []
    for row in rows_of(arguments.data, arguments.rows, arguments.base, 320):
        prompt, answer = (
            tuple(base.tokenizer(row[key], add_special_tokens=False)["input_ids"])
            for key in ("prompt", "answer")
        )
        learned = (False,) * len(prompt) + (True,) * len(answer)
        rows.append(TokenRow("it", prompt + answer, learned))
    sizes = {"tokens": 0, "labels": 0}

    def step(at: int) -> None:
        start = at * arguments.batch % (len(rows) - arguments.batch)
        batch = rows[start : start + arguments.batch]
        sizes["tokens"] += sum(len(row.ids) for row in batch)
        sizes["labels"] += sum(row.labels for row in batch)
        for group in by_budget(batch, pack_tokens(base.device)):
            losses, _ = token_losses(base, group, {"it": adapter.contribution()})
            losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step(0)
    before = peak()
    seconds = []
    for at in range(1, 1 + arguments.steps):
        began = time.perf_counter()
        step(at)
        seconds.append(time.perf_counter() - began)
    sizes = dict.fromkeys(sizes, 0)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        began = time.perf_counter()
        for at in range(1, 1 + arguments.steps):
            step(at)
        profiled = time.perf_counter() - began
    best = max(before, peak())
    spent: dict[str, float] = {}
    work = 0.0
    for event in record.key_averages(group_by_input_shape=True):
        self_seconds = event.self_cpu_time_total / 1e6
        kind = event.key
        if kind in PRODUCTS:
            work += event.count * operations(event.input_shapes, kind)
            kind = "products"
        elif any(word in kind for word in ATTENTION):
            kind = "attention"
        spent[kind] = spent.get(kind, 0.0) + self_seconds
    spent["python and dispatch"] = profiled - sum(spent.values())
    products = spent.pop("products")
    print(
        json.dumps(
            {
                "base": arguments.base,
                "rows": arguments.rows,
                "method": arguments.method,
                "set": json.loads(arguments.set),
                "threads": arguments.threads,
                "tokens_a_step": sizes["tokens"] // arguments.steps,
                "labels_a_step": sizes["labels"] // arguments.steps,
                "seconds_a_step": round(statistics.median(seconds), 3),
                "peak_gflops": round(best),
                "products_gflops": round(work / products / 1e9),
                "products_of_peak": round(work / products / 1e9 / best, 3),
                "step_of_peak": round(work / sum(seconds) / 1e9 / best, 3),
                "products_share": round(products / profiled, 3),
                "rest": {
                    name: round(value / profiled, 3)
                    for name, value in sorted(spent.items(), key=lambda item: -item[1])[:14]
                },
            }
        )
    )


if __name__ == "__main__":
    main()
