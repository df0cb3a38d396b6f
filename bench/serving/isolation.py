"""Whether other requests change an answer: 2,000 requests of 40 clients while adapters come and go.

    python bench/serving/isolation.py --threads 2 --out FILE.jsonl

Each kind of request (20 prompts, the base and 16 tasks, greedy and sampled with a seed, all with
log-probabilities) is first answered alone. Then 40 clients send them in random order, while other tasks are
withdrawn, offered again, promoted and rolled back over HTTP. The memory limit for adapters is so low that the
requested adapters are evicted and loaded again. Text, tokens and log-probabilities must be the same to the
last bit, and no answer may be a 5xx; otherwise the exit code is 1.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from clients import post
from prompts import prompt_ids, store_adapters
from results import machine, options, tell, versions
from servers import COMPLETIONS, OurServer

from onebase.model.base import Base

Request = dict[str, Any]
CHURNED = 8  # tasks that come and go, in addition to the 16 that are compared


def kinds(tokenizer: Any, tasks: list[str], count: int) -> list[Request]:
    """`count` different requests: task, prompt, length, greedy or sampled with a seed."""
    drawn = random.Random(0)
    prompts = prompt_ids(tokenizer, 20)
    requests = []
    for at in range(count):
        request: Request = {
            "model": tasks[at % len(tasks)],
            "prompt": drawn.choice(prompts),
            "max_tokens": drawn.randint(4, 24),
            "temperature": 0,
            "logprobs": 2,
        }
        if at % 2:
            request |= {"temperature": 0.8, "seed": at, "top_p": 0.95}
        requests.append(request)
    return requests


def told(answer: Request) -> str:
    """The part of an answer that must not change."""
    kept = {key: answer[key] for key in ("model", "usage", "system_fingerprint") if key in answer}
    kept.get("usage", {}).pop("prompt_tokens_details", None)  # how much came from a cache
    return json.dumps({**kept, "choices": answer["choices"]}, sort_keys=True)


async def alone(server: OurServer, requests: list[Request]) -> list[str]:
    answers = []
    for request in requests:
        reply = await post(server.address, COMPLETIONS, request)
        if reply.status != 200:
            raise SystemExit(f"{request['model']}: {reply.status} {reply.body}")
        answers.append(told(reply.body))
    return answers


async def crowd(
    server: OurServer, arguments: argparse.Namespace, requests: list[Request], expected: list[str]
) -> tuple[Counter[str], list[tuple[Request, str, str]]]:
    """Run all clients at once; returns how their requests ended, and those that were answered differently."""
    order = [at % len(requests) for at in range(arguments.requests)]
    random.Random(1).shuffle(order)
    ends: Counter[str] = Counter()
    different: list[tuple[Request, str, str]] = []

    async def client() -> None:
        while order:
            at = order.pop()
            reply = await post(server.address, COMPLETIONS, requests[at])
            same = reply.status == 200 and told(reply.body) == expected[at]
            ends["same" if same else f"{reply.status}, different"] += 1
            if not same:
                different.append((requests[at], expected[at], json.dumps(reply.body)))
            if len(order) % 100 == 0:
                print(f"{len(order)} left, {len(different)} different", file=sys.stderr)

    clients = [asyncio.create_task(client()) for _ in range(arguments.clients)]
    churning = [asyncio.create_task(churn(server, number, ends)) for number in range(CHURNED)]
    await asyncio.gather(*clients)
    for task in churning:
        task.cancel()
    await asyncio.gather(*churning, return_exceptions=True)
    return ends, different


async def churn(server: OurServer, number: int, ends: Counter[str]) -> None:
    """Withdraw and offer a task and change its version, with requests for it in between."""
    task, path = f"c{number}", "/v1/adapters"
    body = {"model": task, "prompt": [1, 2, 3, 4 + number], "max_tokens": 4, "temperature": 0}
    calls = [
        ("ask", "POST", COMPLETIONS, body),
        ("withdraw", "DELETE", f"{path}/{task}", {}),
        ("ask withdrawn", "POST", COMPLETIONS, body),
        ("offer", "POST", path, {"task": task}),
        ("promote", "POST", f"{path}/{task}/promote", {"version": 1}),
        ("ask", "POST", COMPLETIONS, body),
        ("roll back", "POST", f"{path}/{task}/rollback", {}),
    ]
    while True:
        for name, method, where, given in calls:
            reply = await post(server.address, where, given, method=method)
            ends[f"churn, {name}: {reply.status}"] += 1
            if reply.status >= 500:
                print(name, reply.status, reply.body, file=sys.stderr)
            await asyncio.sleep(0.05)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--kinds", type=int, default=170)
    parser.add_argument("--adapter-memory", default="40MB")
    arguments = parser.parse_args()
    base = Base.load(arguments.base)
    with tempfile.TemporaryDirectory() as folder:
        stored = store_adapters(base, Path(folder), 16)
        for _ in range(2):  # two versions each
            store_adapters(base, Path(folder), CHURNED, prefix="c")
        names = ["base", *(task for task, _ in stored)]
        requests = kinds(base.tokenizer, names, arguments.kinds)
        with OurServer(
            arguments.base,
            arguments.precision,
            arguments.threads,
            workspace=Path(folder),
            more=["--adapter-memory", arguments.adapter_memory],
        ) as server:
            expected = asyncio.run(alone(server, requests))
            ends, different = asyncio.run(crowd(server, arguments, requests, expected))
            again = asyncio.run(alone(server, requests))
            print(*server.failures()[:3], sep="\n", file=sys.stderr)
    errors = sum(count for end, count in ends.items() if end.startswith("5") or ": 5" in end)
    met = not different and not errors and again == expected
    for request, before, after in different[:3]:
        print(json.dumps(request), before, after, sep="\n", file=sys.stderr)
    line = {
        "what": f"{arguments.requests} requests of {arguments.clients} clients",
        "kinds of request": len(requests),
        "ends": dict(sorted(ends.items())),
        "different": len(different),
        "5xx": errors,
        "alone afterwards the same": again == expected,
        "met": met,
    }
    facts = {"threads": arguments.threads, "precision": arguments.precision}
    tell([line], {**facts, **machine(), **versions()}, arguments.out)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
