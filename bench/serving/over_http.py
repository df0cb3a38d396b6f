"""The cost of the server: 16 streams over HTTP against the engine alone, and the latency of /healthz.

    python bench/serving/over_http.py --threads 1 --out FILE.jsonl

Both answer the same prompts in turn, in processes of their own. While the server is measured, another process
requests /healthz every 50 ms; this counts in the server's time. The 95th percentile is over all rounds.
"""

import json

from prompts import prompt_ids
from results import Comparison, machine, options, percentile, tell, versions
from servers import OurServer, speed
from sides import Process, environment, script
from turns import WARM_UP_TOKENS, Requests, engine_worker, in_rounds, tokens_a_second

from onebase.model.fetch import resolve
from onebase.model.tokenizer import read_tokenizer


def probed(server: OurServer, requests: Requests, tokens: int, health: list[float]) -> float:
    """The server's speed while /healthz is requested; the latencies are added to `health`."""
    prober = Process("prober", script("prober.py", server.address), environment(1))
    try:
        assert prober.process.stdout is not None
        prober.process.stdout.readline()  # wait until it is ready
        tokens_per_second = speed(server, requests, tokens, stop=False)
        prober.end()
        health += json.loads(prober.process.stdout.readline())
    finally:
        prober.close()
    server.stop()
    return tokens_per_second


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    prompts = prompt_ids(
        read_tokenizer(resolve(arguments.base)), arguments.streams * (arguments.rounds + 1)
    )
    requests = in_rounds(prompts, ["base"] * arguments.streams, arguments.rounds)
    health: list[float] = []
    comparison = Comparison(
        f"HTTP, {arguments.streams} streams", "tokens/s", {"engine": 0.9}, ours="onebase serve"
    )
    with (
        OurServer(arguments.base, arguments.precision, arguments.threads) as server,
        engine_worker(arguments) as engine,
    ):

        def served(number: int) -> float:
            if not number:
                return speed(server, requests[0], WARM_UP_TOKENS)
            return probed(server, requests[number], arguments.tokens, health)

        comparison.run(
            arguments.rounds,
            {
                "onebase serve": served,
                "engine": tokens_a_second(engine, requests, arguments.tokens),
            },
        )
    facts = {"threads": arguments.threads, "precision": arguments.precision}
    p95 = 1000 * percentile(health, 0.95)
    line = {"what": "/healthz meanwhile, p95", "side": "onebase serve", "unit": "ms"}
    line |= {"median": p95, "asked": len(health), "most": 1000 * max(health)}
    line |= {"bar": 20.0, "met": p95 < 20}
    tell([*comparison.lines(), line], {**facts, **machine(), **versions()}, arguments.out)


if __name__ == "__main__":
    main()
