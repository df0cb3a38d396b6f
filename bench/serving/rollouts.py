"""The rollouts of one PPO step: this code against an earlier tree, with the same policy, prompts and seeds.

    git archive 088b285 src | tar -x -C DIR
    python bench/serving/rollouts.py --before DIR/src --threads 2 --out FILE.jsonl

16 prompts, answers of up to 32 tokens at temperature 1 (the defaults of `align ppo`), a LoRA with r=8 as policy,
the base in fp32. Both sides are processes that stay loaded and are measured in turn. The answers are compared
token by token, and so are their log-probabilities.
"""

import argparse
import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

from results import Comparison, machine, options, tell, versions
from sides import Worker, environment, script

PROMPTS = 16


def work(arguments: argparse.Namespace) -> None:
    """Run one side, with the onebase that is first on this process's path."""
    import torch
    from prompts import random_adapter, texts

    import onebase
    from onebase.align.rewards import Prompt
    from onebase.align.rollout import roll_out
    from onebase.data.example import Turn
    from onebase.data.template import Template
    from onebase.engine.sampling import Sampling

    torch.set_num_threads(arguments.threads)
    base = onebase.Base.load(arguments.base)
    policy = random_adapter(base, "lora", 0)
    template = Template(base.tokenizer)
    asked = [
        Prompt((Turn("user", text),), tuple(template.prompt(text)), {}, "", 0)
        for text in texts()[:PROMPTS]
    ]
    given: dict[str, Any] = {"base": base, "policy": policy, "prompts": asked}
    if "template" in inspect.signature(roll_out).parameters:
        given["template"] = template
    print(json.dumps({"onebase": onebase.__file__}), flush=True)
    for line in sys.stdin:
        seed = json.loads(line)["seed"]
        sampling = Sampling(max_tokens=arguments.tokens, temperature=1.0, seed=seed)
        began = time.perf_counter()
        rollouts = roll_out(**given, sampling=sampling)
        seconds = time.perf_counter() - began
        told = {
            "seconds": seconds,
            "answers": [list(rollout.tokens.answer) for rollout in rollouts],
            "logprobs": [list(rollout.logprobs) for rollout in rollouts],
        }
        print(json.dumps(told), flush=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--before", type=Path, help="the src folder of an earlier tree")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--work", action="store_true", help="run as a side")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return
    command = script("rollouts.py", "--work", "--base", arguments.base)
    command += ["--threads", str(arguments.threads), "--tokens", str(arguments.tokens)]
    variables = environment(arguments.threads)
    sides = {"onebase": Worker("onebase", command, variables)}
    earlier = {**variables, "PYTHONPATH": str(arguments.before)}
    sides["before"] = Worker("before", command, earlier)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}

    def speed(name: str, number: int) -> float:
        answer = sides[name].ask({"seed": number})
        answers[name].append(answer)
        return float(sum(map(len, answer["answers"])) / answer["seconds"])

    comparison = Comparison("rollouts of a PPO step", "tokens/s", {"before": 2.0})
    try:
        comparison.run(
            arguments.rounds,
            {name: lambda number, name=name: speed(name, number) for name in sides},
        )
    finally:
        for side in sides.values():
            side.close()
    pairs = list(zip(answers["onebase"], answers["before"], strict=True))
    rows = [pair for a, b in pairs for pair in zip(a["answers"], b["answers"], strict=True)]
    errors = [
        abs(x - y)
        for a, b in pairs
        for p, q, one, other in zip(
            a["answers"], b["answers"], a["logprobs"], b["logprobs"], strict=True
        )
        if p == q
        for x, y in zip(one, other, strict=True)
    ]
    facts = {
        "threads": arguments.threads,
        "answers": len(rows),
        "answers that differ": sum(a != b for a, b in rows),
        "log-probabilities differ by at most": max(errors, default=None),
        "sides": {name: side.facts for name, side in sides.items()},
    }
    tell(comparison.lines(), {**facts, **machine(), **versions()}, arguments.out)


if __name__ == "__main__":
    main()
