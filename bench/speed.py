"""Training speed against PEFT's padded loop or TRL's SFTTrainer: same method, rows and batch size, in turn.

    python bench/speed.py --peer VENV/bin/python --data DIR [--kind trl]

Both sides are workers that stay loaded. In each round, first one trains some steps, then the other.
Reported is the median over rounds of the ratio of real tokens (no padding, no virtual tokens) per second.
Each side keeps its own wait policy for threads: onebase sets one, the peer has OpenMP's default.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

# The wait policy for threads. Importing onebase sets it; the peer does not import onebase.
CHOSEN = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
SNIPS = "Classify the intent of the request."
METHODS = ["prompt-tuning", "p-tuning", "p-tuning-v2", "lora"]


def rows_of(data: Path, name: str, base: str, count: int) -> list[dict[str, str]]:
    """Prompts and answers as the model sees them, the same texts for both sides."""
    import onebase
    from onebase.data.template import Template

    tokenizer = onebase.Base.load(base).tokenizer
    if name == "snips":
        template = Template(tokenizer, instruction=SNIPS)
        lines = (data / "snips_train.jsonl").read_text(encoding="utf-8").splitlines()
        pairs = [(row["text"], row["intent"]) for row in map(json.loads, lines[::37])]
    else:
        template = Template(tokenizer, kind="商品：{input}\n广告：")
        lines = (data / "adgen_dev.jsonl").read_text(encoding="utf-8").splitlines()
        pairs = [(row["content"], row["summary"]) for row in map(json.loads, lines)]
    end = template.end
    return [
        {"prompt": template.prompt_text(question), "answer": answer + end}
        for question, answer in pairs[:count]
    ]


def work(arguments: argparse.Namespace) -> None:
    """Run our side as a worker."""
    import onebase
    from onebase.adapters.methods import build_adapter
    from onebase.engine.rows import TokenRow, by_budget, token_losses
    from onebase.engine.trunk import Trunk
    from onebase.training.loop import pack_tokens

    torch.set_num_threads(arguments.threads)
    base = onebase.Base.load(arguments.base)
    settings = json.loads(arguments.set)
    adapter = build_adapter(base, arguments.method, settings, init_text="Do it.", seed=0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3)
    trunk = Trunk(base)
    rows = []
    for line in Path(arguments.rows).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt, answer = (
            tuple(base.tokenizer(row[key], add_special_tokens=False)["input_ids"])
            for key in ("prompt", "answer")
        )
        learned = (False,) * len(prompt) + (True,) * len(answer)
        rows.append(TokenRow("it", prompt + answer, learned))
    cycle = itertools.cycle(rows)
    for line in sys.stdin:
        tokens = 0
        began = time.perf_counter()
        for _ in range(int(line)):
            batch = list(itertools.islice(cycle, arguments.batch))
            labels = sum(row.labels for row in batch)
            tokens += sum(len(row.ids) for row in batch)
            for group in by_budget(batch, pack_tokens(base.device)):
                contributions = {"it": adapter.contribution()}
                losses, _ = token_losses(base, group, contributions, trunk=trunk)
                (losses.sum() / labels).backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens}), flush=True)


def own_defaults() -> dict[str, str]:
    """The environment without the variables that importing onebase sets in this process."""
    return {key: value for key, value in os.environ.items() if key not in CHOSEN}


class Worker:
    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own_defaults()
        )

    def speed(self, steps: int) -> float:
        """Tokens per second over some steps."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["tokens"] / answer["seconds"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="a Python with torch, transformers and peft")
    parser.add_argument("--kind", default="peft", choices=["peft", "trl"], help="the kind of peer")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--sets", default="snips,adgen")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", default="{}", help="settings of our method, JSON")
    parser.add_argument("--peer-method", help="the peer's method, if different")
    parser.add_argument("--method", help="run as our side")
    parser.add_argument("--rows")
    arguments = parser.parse_args()
    if arguments.method:
        work(arguments)
        return
    from onebase.model.fetch import resolve

    shared = ["--batch", str(arguments.batch), "--threads", str(arguments.threads)]
    for name in arguments.sets.split(","):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
            for row in rows_of(arguments.data, name, arguments.base, 320):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            for method in arguments.methods.split(","):
                ours = [sys.executable, __file__, "--base", arguments.base, "--method", method]
                ours += ["--rows", file.name, "--set", arguments.set, *shared]
                theirs = [arguments.peer, str(Path(__file__).parent / f"speed_{arguments.kind}.py")]
                theirs += ["--base", str(resolve(arguments.base)), "--rows", file.name]
                theirs += ["--method", arguments.peer_method or method, *shared]
                workers = [Worker(ours), Worker(theirs)]
                for worker in workers:
                    worker.speed(2)  # warm up
                rounds = [
                    [worker.speed(arguments.steps) for worker in workers]
                    for _ in range(arguments.rounds)
                ]
                for worker in workers:
                    worker.close()
                ratios = [one / other for one, other in rounds]
                line = {
                    "base": arguments.base,
                    "rows": name,
                    "method": method,
                    "set": json.loads(arguments.set),
                    "ours": statistics.median(one for one, _ in rounds),
                    arguments.kind: statistics.median(other for _, other in rounds),
                    "ratio": statistics.median(ratios),
                    "ratios": [round(ratio, 2) for ratio in ratios],
                    "threads": arguments.threads,
                    "torch": str(torch.__version__),
                }
                print(json.dumps(line), flush=True)
                if arguments.out:
                    with arguments.out.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
