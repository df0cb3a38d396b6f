"""The cost of switching tasks: 1,000 requests over 8 loaded tasks in random order or sorted by task, and
the time to load one more adapter into the running engine.

    OMP_WAIT_POLICY=PASSIVE python bench/switching.py [--base smollm2-135m] [--rounds 5]

Both orders decode the same prompts, one request at a time, in turn, in one process.
"""

import argparse
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

METHODS = ["lora", "prompt-tuning", "p-tuning", "p-tuning-v2"]


def loaded_engine(base: Base) -> Engine:
    engine = Engine(base)
    for index in range(8):
        adapter = build_adapter(base, METHODS[index % 4], {}, init_text="Answer.", seed=index)
        engine.tasks.load(f"t{index}", adapter, Template(base.tokenizer))
    return engine


def seconds(engine: Engine, tasks: list[str]) -> float:
    sampling = Sampling(max_tokens=1)
    began = time.perf_counter()
    for task in tasks:
        engine.generate([(task, "Where is my parcel?")], sampling)
    return time.perf_counter() - began


def write(base: Base, adapter: Adapter, folder: Path) -> None:
    """Write an adapter's files as training does."""
    save_adapter(adapter, folder, base)
    with_prompt_kv(GenericRunner(base), adapter, folder)


def loading_times(base: Base, engine: Engine, folder: Path) -> dict[str, list[float]]:
    """Milliseconds from files on disk to a loaded adapter, ten times for each method."""
    store = AdapterStore(Workspace(folder))
    times: dict[str, list[float]] = {}
    for method in METHODS:
        adapter = build_adapter(base, method, {}, init_text="Answer.", seed=0)
        record = {"base": base.name, "base_fingerprint": base.fingerprint, "template": {}}
        stored = store.add(method, partial(write, base, adapter), record)
        for _ in range(10):
            began = time.perf_counter()
            engine.load(stored)
            times.setdefault(method, []).append(1000 * (time.perf_counter() - began))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000)
    arguments = parser.parse_args()
    base = Base.load(arguments.base)
    engine = loaded_engine(base)
    names = [f"t{index}" for index in range(8)]
    each = arguments.requests // arguments.rounds
    draw = random.Random(0)
    ratios = []
    seconds(engine, names)
    for _ in range(arguments.rounds):
        # The same requests, once sorted by task, once shuffled.
        order = [names[index % 8] for index in range(each)]
        never = sorted(order)
        draw.shuffle(order)
        before = seconds(engine, never[: each // 2])
        switched = seconds(engine, order)
        after = seconds(engine, never[each // 2 :])
        ratios.append(switched / (before + after))
    with tempfile.TemporaryDirectory() as folder:
        loads = loading_times(base, engine, Path(folder))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {base.name}")
    shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"switching / never switching: median {statistics.median(ratios):.3f} ({shown})")
    for method, times in loads.items():
        print(
            f"loading {method}: median {statistics.median(times):.0f} ms, maximum {max(times):.0f} ms"
        )


if __name__ == "__main__":
    main()
