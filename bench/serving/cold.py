"""A thousand registered adapters: the time to a cold one's first token, and the size of a soft prompt on disk.

    python bench/serving/cold.py --threads 2 --out FILE.jsonl

The server gets requests for tasks that it has not loaded yet, one streamed request at a time; then, as `warm`,
for the same tasks with other prompts. A prompt has about 50 tokens, and the time includes processing it.
"""

import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Any

from clients import stream
from prompts import METHODS, prompt_ids, store_adapters
from results import machine, options, percentile, tell, versions
from servers import COMPLETIONS, OurServer, completion

from onebase.model.base import Base

MILLISECONDS = 300.0
MEGABYTE = 1_000_000


def first_token(server: OurServer, task: str, ids: list[int]) -> float:
    """Milliseconds from a request to the first text of its answer."""
    reply = asyncio.run(stream(server.address, COMPLETIONS, completion(task, ids, 8)))
    if reply.status != 200:
        raise SystemExit(f"{task}: {reply.status} {reply.body}\n{server.log()}")
    return 1000 * reply.times[0]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--registered", type=int, default=1000)
    parser.add_argument("--asked", type=int, default=40, help="tasks of each method")
    arguments = parser.parse_args()
    base = Base.load(arguments.base)
    prompts = prompt_ids(base.tokenizer, 1 + 2 * arguments.asked)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        stored = dict(store_adapters(base, Path(folder), arguments.registered))
        with OurServer(
            arguments.base,
            arguments.precision,
            arguments.threads,
            workspace=Path(folder),
            start_seconds=600,
        ) as server:
            first_token(server, "base", prompts[0])
            for at, method in enumerate(METHODS):
                tasks = list(stored)[at :: len(METHODS)][: arguments.asked]
                cold, warm = (
                    [
                        first_token(server, task, ids)
                        for task, ids in zip(tasks, prompts[start:], strict=False)
                    ]
                    for start in (1, 1 + arguments.asked)
                )
                size = max(
                    sum(file.stat().st_size for file in Path(stored[task]).iterdir())
                    for task in tasks
                )
                lines.append(
                    {
                        "what": f"cold adapter, {method}, of {arguments.registered}",
                        "unit": "ms to the first token",
                        "median": statistics.median(cold),
                        "p95": percentile(cold, 0.95),
                        "most": max(cold),
                        "warm": statistics.median(warm),
                        "bytes on disk": size,
                        "bar": MILLISECONDS,
                        "met": max(cold) <= MILLISECONDS
                        and (method in ("lora", "ia3") or size < MEGABYTE),
                    }
                )
    facts = {"threads": arguments.threads, "precision": arguments.precision}
    tell(lines, {**facts, **machine(), **versions()}, arguments.out)


if __name__ == "__main__":
    main()
