"""How much of their speed streams keep while a training runs on the same machine.

    python bench/serving/beside_training.py --data snips_train.jsonl --threads 2 --out FILE.jsonl

The tokens per second of decoding streams are measured for `--seconds` alone, then beside `onebase train` on the
same workspace: in the server's session (one terminal, one service, one container) and in a session of its own
(another terminal). Measuring begins once the training is computing.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clients import Reply, stream
from prompts import prompt_ids
from results import machine, options, tell, versions
from servers import COMPLETIONS, ONEBASE, OurServer, completion
from sides import environment

from onebase.model.fetch import resolve
from onebase.model.tokenizer import read_tokenizer

KEPT = 0.4
START_SECONDS = 180
COMPUTING_SECONDS = 15  # after the run folder exists, to load the base and start computing


@contextmanager
def training(
    arguments: argparse.Namespace, workspace: Path, task: str, *, own_session: bool
) -> Iterator[None]:
    """Run a training in the server's session or in one of its own; it is computing when this yields."""
    # The task name is unique, because the same command would resume the run that was killed.
    command = [sys.executable, "-c", ONEBASE, "train", "--task", task, "--method", "lora"]
    command += ["--data", str(arguments.data), "--base", arguments.base, "--set", "epochs=50"]
    command += ["--workspace", str(workspace)]
    known = set(workspace.glob("runs/*/config.yaml"))
    process = subprocess.Popen(
        command,
        env=environment(arguments.threads),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=own_session,
    )
    try:
        end = time.monotonic() + START_SECONDS
        while not set(workspace.glob("runs/*/config.yaml")) - known:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("The training did not start.")
            time.sleep(0.5)
        time.sleep(COMPUTING_SECONDS)
        yield
    finally:
        process.kill()
        process.wait()


async def tokens_a_second(
    server: OurServer, arguments: argparse.Namespace, prompts: list[Any]
) -> float:
    """Tokens per second of all streams together, from the time when each has its first token."""
    replies = [Reply() for _ in prompts]
    streams = [
        asyncio.create_task(
            stream(server.address, COMPLETIONS, completion("base", prompt, 6000), into=reply)
        )
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    while not all(reply.times for reply in replies):
        await asyncio.sleep(0.05)
    before, began = sum(len(reply.times) for reply in replies), time.perf_counter()
    await asyncio.sleep(arguments.seconds)
    count, seconds = (
        sum(len(reply.times) for reply in replies) - before,
        time.perf_counter() - began,
    )
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    return count / seconds


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    prompts = prompt_ids(read_tokenizer(resolve(arguments.base)), arguments.streams)
    figures: dict[str, list[float]] = {"alone": [], "one session": [], "two sessions": []}
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        with OurServer(
            arguments.base,
            arguments.precision,
            arguments.threads,
            workspace=workspace,
            own_session=False,
        ) as server:

            def measure() -> float:
                return asyncio.run(tokens_a_second(server, arguments, prompts))

            for number in range(arguments.rounds):
                figures["alone"].append(measure())
                for name, own_session in (("one session", False), ("two sessions", True)):
                    task = f"beside-{number}-{int(own_session)}"
                    with training(arguments, workspace, task, own_session=own_session):
                        figures[name].append(measure())
    alone = statistics.median(figures["alone"])
    lines = [
        {
            "what": f"{arguments.streams} streams, {name}",
            "unit": "tokens/s",
            "median": statistics.median(values),
            "rounds": [round(value, 2) for value in values],
            "share": statistics.median(values) / alone,
            "bar": KEPT,
            "met": statistics.median(values) / alone >= KEPT,
        }
        for name, values in figures.items()
    ]
    facts = {"threads": arguments.threads, "precision": arguments.precision}
    tell(lines, {**facts, **machine(), **versions()}, arguments.out)


if __name__ == "__main__":
    main()
