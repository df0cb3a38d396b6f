"""Running streams while long prompts arrive: gaps between tokens, and the wait for a prompt's first token.

    python bench/serving/steady.py --threads 1 --out FILE.jsonl

16 streams decode. For `--quiet` seconds nothing else happens; then for `--busy` seconds a prompt of 512 tokens
arrives every `--every` seconds, with an answer of 16 tokens. Rates are tried from the highest down until one is
sustained: no prompt waits longer than 3 s for its first token, and none is still waiting at the end. Gaps are
measured at the client, over all streams together.
"""

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from clients import Reply, stream
from prompts import long_prompt_ids, prompt_ids
from results import machine, options, percentile, tell, versions
from servers import COMPLETIONS, OurServer, completion

from onebase.model.fetch import resolve
from onebase.model.tokenizer import read_tokenizer

WAIT = 3.0
ANSWER = 16


@dataclass
class Watched:
    """Gaps between tokens (s) without and with arriving prompts, the prompts' waits for their first token, and the
    number of prompts that were still waiting at the end.
    """

    quiet: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    waiting: int = 0


def gaps(replies: list[Reply], begin: float, end: float) -> list[float]:
    """Seconds between consecutive tokens of each stream, both between `begin` and `end`."""
    seconds = []
    for reply in replies:
        times = [reply.began + at for at in reply.times]
        seconds += [b - a for a, b in pairwise(times) if begin <= a and b <= end]
    return seconds


async def watch(
    server: OurServer, arguments: argparse.Namespace, every: float, tokenizer: Any
) -> Watched:
    """Measure one rate."""
    replies = [Reply() for _ in range(arguments.streams)]
    prompts = prompt_ids(tokenizer, arguments.streams)
    steady = [
        asyncio.create_task(
            stream(
                server.address,
                COMPLETIONS,
                completion("base", ids, arguments.stream_tokens),
                into=reply,
            )
        )
        for ids, reply in zip(prompts, replies, strict=True)
    ]
    while not all(reply.times for reply in replies):
        await asyncio.sleep(0.05)
    begin = time.perf_counter()
    await asyncio.sleep(arguments.quiet)
    arrive = time.perf_counter()
    arrivals, arrived = [], []
    for ids in long_prompt_ids(tokenizer, round(arguments.busy / every), arguments.prompt):
        arrived.append(Reply())
        body = completion("base", ids, ANSWER)
        call = stream(server.address, COMPLETIONS, body, into=arrived[-1])
        arrivals.append(asyncio.create_task(call))
        await asyncio.sleep(every)
    end = time.perf_counter()
    await asyncio.sleep(WAIT)
    if any(task.done() for task in steady):
        raise SystemExit("A stream ended too early: raise --stream-tokens.")
    for task in (*steady, *arrivals):
        task.cancel()
    await asyncio.gather(*steady, *arrivals, return_exceptions=True)
    return Watched(
        gaps(replies, begin, arrive),
        gaps(replies, arrive, end),
        [reply.times[0] for reply in arrived if reply.times],
        sum(not reply.times for reply in arrived),
    )


def line_of(watched: Watched, every: float) -> dict[str, Any]:
    quiet, busy = statistics.median(watched.quiet), statistics.median(watched.busy)
    p99 = percentile(watched.busy, 0.99)
    longest = max(watched.waits, default=0.0)
    sustained = longest <= WAIT and not watched.waiting
    return {
        "what": "steady streams",
        "a prompt every": f"{every} s",
        "sustained": sustained,
        "median gap without, ms": 1000 * quiet,
        "median gap, ms": 1000 * busy,
        "p99 gap, ms": 1000 * p99,
        "median / without (1.5)": busy / quiet,
        "p99 / median (3)": p99 / busy,
        "longest wait, s (3)": longest,
        "still waiting": watched.waiting,
        "met": sustained and busy / quiet <= 1.5 and p99 / busy <= 3,
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--stream-tokens", type=int, default=6000)
    parser.add_argument("--quiet", type=float, default=20.0)
    parser.add_argument("--busy", type=float, default=60.0)
    parser.add_argument("--every", default="1,1.5,2,3,4,6,8", help="seconds, the shortest first")
    arguments = parser.parse_args()
    tokenizer = read_tokenizer(resolve(arguments.base))
    lines = []
    with OurServer(arguments.base, arguments.precision, arguments.threads) as server:
        for every in map(float, arguments.every.split(",")):
            lines.append(line_of(asyncio.run(watch(server, arguments, every, tokenizer)), every))
            if lines[-1]["sustained"]:
                break
    facts = {"threads": arguments.threads, "precision": arguments.precision}
    tell(lines, {**facts, **machine(), **versions()}, arguments.out)


if __name__ == "__main__":
    main()
