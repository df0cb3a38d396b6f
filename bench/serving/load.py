"""200 clients for ten minutes, 30 % of requests aborted: nothing may hang, and memory must stay flat.

    python bench/serving/load.py --threads 2 --minutes 10 --out FILE.jsonl

Each client repeatedly streams 8 to 32 tokens from one of 16 tasks. An aborting client disconnects right after
its request or after a few tokens. After a 429 the client waits one second. The exit code is 1 if

- an answer hangs (does not end within --hang seconds), is a 5xx, or lacks tokens
- the server still holds requests when all clients are gone, or does not end on SIGTERM
- memory, without the caches and adapters that /metrics reports, grows by more than 5 % from the second
  quarter of the time to the last.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients import get, stream
from prompts import prompt_ids, store_adapters
from results import machine, options, percentile, tell, versions
from servers import COMPLETIONS, OurServer, completion
from start import reported, resident

from onebase.model.base import Base

SAMPLE_SECONDS = 2.0


@dataclass
class Seen:
    """What the clients saw: how requests ended; the time to the first token and the total time of those that were
    not aborted (s); the server's memory over time without what it reports (bytes).
    """

    ends: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    tokens: int = 0


async def client(
    server: OurServer,
    number: int,
    arguments: argparse.Namespace,
    asked: list[tuple[str, list[int]]],
    until: float,
    seen: Seen,
) -> None:
    drawn = random.Random(number)
    while time.perf_counter() < until:
        task, ids = drawn.choice(asked)
        tokens = drawn.randint(8, 32)
        leave = drawn.randint(0, 6) if drawn.random() < arguments.leaving else None
        body = completion(task, ids, tokens)
        try:
            reply = await stream(
                server.address, COMPLETIONS, body, leave_after=leave, seconds=arguments.hang
            )
        except TimeoutError:
            seen.ends["hung"] += 1
            continue
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.ends[type(error).__name__] += 1
            continue
        if leave is not None:
            seen.ends["left"] += 1
        elif reply.status == 429:
            seen.ends["429"] += 1
            await asyncio.sleep(1)
        elif reply.status == 200 and reply.tokens == tokens:
            seen.ends["answered"] += 1
            seen.tokens += tokens
            seen.first.append(reply.times[0] if reply.times else reply.seconds)
            seen.whole.append(reply.seconds)
        else:
            seen.ends[f"status {reply.status}, {reply.tokens} of {tokens} tokens"] += 1


async def watch_memory(server: OurServer, until: float, seen: Seen) -> None:
    while time.perf_counter() < until:
        known = sum((await reported(server.address)).values())
        seen.memory.append(resident(server.process.pid) - known)
        await asyncio.sleep(SAMPLE_SECONDS)


async def held(server: OurServer) -> float:
    """The number of sequences that the server still holds, by its metrics."""
    _, raw = await get(server.address, "/metrics")
    wanted = ("onebase_requests_running", "onebase_requests_waiting")
    rows = [line.rsplit(" ", 1) for line in raw.decode().splitlines() if line.startswith(wanted)]
    return sum(float(value) for _, value in rows)


async def run(
    server: OurServer, arguments: argparse.Namespace, asked: list[tuple[str, list[int]]]
) -> tuple[Seen, float]:
    seen = Seen()
    until = time.perf_counter() + 60 * arguments.minutes
    clients = [
        client(server, number, arguments, asked, until, seen) for number in range(arguments.clients)
    ]
    await asyncio.gather(watch_memory(server, until, seen), *clients)
    await asyncio.sleep(2)
    return seen, await held(server)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--leaving", type=float, default=0.3)
    parser.add_argument("--hang", type=float, default=180.0)
    parser.add_argument("--growth", type=float, default=1.05, help="largest growth of memory")
    arguments = parser.parse_args()
    base = Base.load(arguments.base)
    with tempfile.TemporaryDirectory() as folder:
        stored = store_adapters(base, Path(folder), 16)
        prompts = prompt_ids(base.tokenizer, 64)
        names = ["base", *(task for task, _ in stored)]
        asked = [(names[at % len(names)], ids) for at, ids in enumerate(prompts)]
        server = OurServer(
            arguments.base, arguments.precision, arguments.threads, workspace=Path(folder)
        )
        with server:
            seen, left = asyncio.run(run(server, arguments, asked))
            began = time.perf_counter()
            server.close()
            ended = time.perf_counter() - began
    quarter = max(1, len(seen.memory) // 4)
    early = statistics.median(seen.memory[quarter : 2 * quarter] or seen.memory)
    growth = statistics.median(seen.memory[-quarter:]) / early
    bad = sum(seen.ends.values()) - sum(seen.ends[end] for end in ("answered", "left", "429"))
    met = not bad and not left and growth <= arguments.growth and ended < 20
    line: dict[str, Any] = {
        "what": f"{arguments.clients} clients for {arguments.minutes:g} min",
        "ends": dict(seen.ends),
        "tokens/s": seen.tokens / (60 * arguments.minutes),
        "first token p50, s": percentile(seen.first, 0.5),
        "p95": percentile(seen.first, 0.95),
        "whole p50, s": percentile(seen.whole, 0.5),
        "whole p95, s": percentile(seen.whole, 0.95),
        "whole, most, s": max(seen.whole),
        "memory, MB": [early / 1e6, max(seen.memory) / 1e6],
        "growth": growth,
        "held at the end": left,
        "ended in, s": ended,
        "met": met,
    }
    facts = {"threads": arguments.threads, "precision": arguments.precision}
    tell([line], {**facts, **machine(), **versions()}, arguments.out)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
