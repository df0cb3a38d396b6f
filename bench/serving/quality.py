"""The cost of `w8a8`: loss and KL against fp32 on four kinds of text, with llama.cpp's Q8_0 for comparison.

    python bench/serving/quality.py --data DIR --workspace DIR --llamacpp VENV/bin/python --gguf FILE \\
        --out FILE.jsonl

fp32 is the pass over the transformers modules, `w8a8` the lean pass. Reported are the change of the loss (nats per
token), the mean KL(fp32, other) and the share of greedy tokens that agree: for the base, and with a LoRA, a
prefix and IA3 vectors that are first trained on the demo's rows (and stored in the workspace). llama.cpp returns
the log-probabilities of its `--top` most likely tokens, one position per request. Its KL counts all other tokens
as one, so it is a lower bound. If the next token is not among the top tokens, the whole vocabulary is requested.
"""

import argparse
import asyncio
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from clients import post
from results import machine, options, tell, versions
from servers import LlamaServer
from texts import segments
from torch import Tensor

import onebase
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.engine.engine import Engine
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.lean.runner import LeanRunner
from onebase.engine.pool import LoadedTask
from onebase.engine.request import Chunk, Request
from onebase.engine.runner import Runner
from onebase.engine.sampling import Sampling
from onebase.training.train import train

LOSS, KL = 0.015, 0.01
BLOCK = 4  # rows of logits at a time
DEMO = Path(onebase.__file__).parent / "demo" / "en"
ADAPTERS = {"lora": "summary", "p-tuning-v2": "social", "ia3": "support"}


@dataclass
class Distance:
    """The distance of a pass from fp32 for each token: loss minus fp32's loss, KL, and whether the best token agrees."""

    loss: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    agree: list[float] = field(default_factory=list)

    def line(self, what: str, side: str) -> dict[str, Any]:
        loss, kl = statistics.mean(self.loss), statistics.mean(self.kl)
        print(f"{side}, {what}: loss {loss:+.4f}, KL {kl:.4f}", file=sys.stderr)
        return {
            "text": what,
            "side": side,
            "tokens": len(self.loss),
            "loss worse by": loss,
            "KL": kl,
            "agree": statistics.mean(self.agree),
            "met": loss <= LOSS and kl <= KL,
        }


def trained(base: onebase.Base, folder: Path) -> list[StoredAdapter]:
    """One adapter of each kind, trained on the demo's rows unless the workspace has it."""
    workspace = onebase.Workspace(folder)
    store = AdapterStore(workspace)
    missing = [method for method in ADAPTERS if method not in store.tasks()]
    if missing:
        jobs = [
            onebase.Job(
                method,
                DEMO / f"{ADAPTERS[method]}.jsonl",
                method,
                "Answer as it is done here.",
                held_out=DEMO / f"{ADAPTERS[method]}.heldout.jsonl",
                set={"batch_size": 4, "epochs": 1},
            )
            for method in missing
        ]
        train(jobs, base=base, workspace=workspace)
    return [store.get(method) for method in ADAPTERS]


def logits(runner: Runner, task: LoadedTask, ids: Sequence[int]) -> Tensor:
    """The logits at every token of a text, [tokens, vocabulary]."""
    request = Request((task,), tuple(ids), Sampling(max_tokens=1), limit=1, score_from=0)
    runner.admit(request)
    token_logits = runner.run([Chunk(request, len(ids), len(ids))])
    runner.release(request)
    return token_logits.clone()


def add_text(distance: Distance, reference: Tensor, other: Tensor, ids: Sequence[int]) -> None:
    """Compare the logits of two passes, [tokens, vocabulary], on one text, in blocks that fit the cache."""
    targets = torch.tensor(ids[1:])[:, None].split(BLOCK)
    blocks = zip(reference[:-1].split(BLOCK), other[:-1].split(BLOCK), targets, strict=True)
    for one, another, target in blocks:
        p, q = (part.double().log_softmax(-1) for part in (one, another))
        worse = p - q
        distance.loss += worse.gather(1, target)[:, 0].tolist()
        distance.kl += worse.mul_(p.exp()).sum(-1).tolist()
        distance.agree += (one.argmax(-1) == another.argmax(-1)).double().tolist()


@dataclass(frozen=True)
class LlamaReader:
    """Log-probabilities of the `top` most likely tokens, from llama.cpp's server. `plain` is a token of one whole
    character. A bias makes the server sample it instead of any other, so that it always returns log-probabilities
    (it does not if the answer ends or stops inside a character). The returned values do not include the bias.
    """

    address: str
    top: int
    plain: int

    async def compare(self, distance: Distance, reference: Tensor, ids: list[int]) -> None:
        """Add one text. With the prompt cache, each request costs one token."""
        for at, (row, target) in enumerate(zip(reference[:-1], ids[1:], strict=True), start=1):
            p = row.double().log_softmax(-1)
            told = await self.likeliest(ids[:at], self.top)
            if target not in told:
                told = await self.likeliest(ids[:at], len(p))
            tokens = torch.tensor(list(told))
            q = torch.tensor(list(told.values())).double()
            shared = p[tokens]
            kl = float((shared.exp() * (shared - q)).sum())
            rest_p, rest_q = (max(1.0 - float(part.exp().sum()), 1e-12) for part in (shared, q))
            distance.kl.append(kl + rest_p * math.log(rest_p / rest_q))
            distance.loss.append(float(p[target]) - told[target])
            distance.agree.append(float(int(p.argmax()) == next(iter(told))))

    async def likeliest(self, ids: list[int], top: int) -> dict[int, float]:
        """The log-probabilities of the most likely next tokens, best first."""
        body = {
            "prompt": ids,
            "n_predict": 1,
            "temperature": 0,
            "n_probs": top,
            "logit_bias": [[self.plain, 1000.0]],
            "cache_prompt": True,
        }
        reply = await post(self.address, "/completion", body)
        (only,) = reply.body["completion_probabilities"]
        return {one["id"]: one["logprob"] for one in only["top_logprobs"]}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--workspace", type=Path, required=True, help="for the trained adapters")
    parser.add_argument("--tokens", type=int, default=2000, help="of each kind of text, at least")
    parser.add_argument("--top", type=int, default=4000)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    exact = onebase.Base.load(arguments.base)
    stored = trained(exact, arguments.workspace)
    quantized = onebase.Base.load(arguments.base, precision=arguments.precision)
    runners: list[Runner] = [GenericRunner(exact), LeanRunner(quantized)]
    engines = [Engine(base, stored) for base in (exact, quantized)]
    kinds = segments(exact.tokenizer, arguments.data, arguments.tokens)
    lines = []
    for name in ("base", *ADAPTERS):
        tasks = [engine.tasks[name] for engine in engines]
        for kind, texts in kinds.items():
            distance = Distance()
            for ids in texts:
                both = [
                    logits(runner, task, ids) for runner, task in zip(runners, tasks, strict=True)
                ]
                add_text(distance, *both, ids)
            lines.append(distance.line(kind, f"{arguments.precision}, {name}"))
    facts = {"kernels": [runner.kernel for runner in runners], "threads": arguments.threads}
    tell(lines, {**facts, **machine(), **versions()}, arguments.out)
    if arguments.llamacpp:
        bare = engines[0].tasks["base"]
        plain = exact.tokenizer("a", add_special_tokens=False)["input_ids"][0]
        lines = llama_lines(arguments, kinds, plain, lambda ids: logits(runners[0], bare, ids))
        tell(lines, {**facts, **machine(), **versions()}, arguments.out)


def llama_lines(
    arguments: argparse.Namespace,
    kinds: dict[str, list[list[int]]],
    plain: int,
    reference: Callable[[list[int]], Tensor],
) -> list[dict[str, Any]]:
    lines = []
    with LlamaServer(arguments.llamacpp, arguments.gguf, 1, arguments.threads) as server:
        server.wake()
        reader = LlamaReader(server.address, arguments.top, plain)
        for kind, texts in kinds.items():
            distance = Distance()
            for ids in texts:
                asyncio.run(reader.compare(distance, reference(ids), ids))
            lines.append(distance.line(kind, "llama.cpp Q8_0, base"))
    return lines


if __name__ == "__main__":
    main()
