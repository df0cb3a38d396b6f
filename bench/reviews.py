"""A reward model from rated reviews, and PPO that continues reviews by it.

    python bench/reviews.py --data DIR --workspace DIR --out FILE.jsonl --part reward
    python bench/reviews.py --data DIR --workspace DIR --out FILE.jsonl --part ppo --method lora

The reward model is trained on most of the rated movie reviews and evaluated on held-out pairs whose ratings
differ by 1 or more. PPO gets the first words of other reviews and continues them. Afterwards the base and the
policy continue new beginnings that neither has seen. The reward model compares them, and so does VADER's
sentiment lexicon (vaderSentiment, pip install -e '.[bench]'), which is not used in training.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import onebase
from onebase.adapters.adapter import Adapter
from onebase.adapters.peft_format import load_adapter
from onebase.align.answers import packs
from onebase.align.prompts import load_prompts
from onebase.align.rewards import LearnedReward, distinct_2, reward_named
from onebase.align.rollout import roll_out
from onebase.data.template import Template
from onebase.engine.rows import read_rows
from onebase.engine.sampling import Sampling

BEGINNING = 4  # words
TEMPLATE = "{input}"


def files(data: Path, folder: Path, rows: int, prompts: int, fresh: int) -> dict[str, Path]:
    """Write rated reviews to train on, beginnings to continue, and unseen beginnings; returns the paths."""
    lines = (data / "reviews_rated_movie.jsonl").read_text(encoding="utf-8").splitlines()
    reviews = [json.loads(line) for line in lines]
    parts: dict[str, list[dict[str, Any]]] = {
        "rated": [{"text": row["text"], "rating": row["rating"]} for row in reviews[:rows]]
    }
    start = [
        {"prompt": " ".join(row["text"].split()[:BEGINNING])}
        for row in reviews[rows:]
        if len(row["text"].split()) > 2 * BEGINNING
    ]
    unique = list({row["prompt"]: row for row in start}.values())
    parts["prompts"], parts["fresh"] = unique[:prompts], unique[prompts : prompts + fresh]
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, part in parts.items():
        paths[name] = folder / f"{name}.jsonl"
        text = "".join(json.dumps(row) + "\n" for row in part)
        paths[name].write_text(text, encoding="utf-8")
    return paths


def write(out: Path, **line: Any) -> None:
    text = json.dumps({**line, "threads": torch.get_num_threads(), "torch": str(torch.__version__)})
    print(text, flush=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def continued(
    base: onebase.Base, adapter: Adapter, fresh: Path, reward: LearnedReward, tokens: int
) -> dict[str, float]:
    """Let a policy continue the unseen beginnings; returns means of reward, sentiment, diversity and length."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    template = Template(base.tokenizer, kind=TEMPLATE)
    prompts = load_prompts(fresh, template).prompts
    rollouts = roll_out(
        base, adapter, template, prompts, Sampling(max_tokens=tokens, temperature=1.0, seed=99)
    )
    units = [[reward.text(item.prompt, item.text).score_row("r")] for item in rollouts]
    scores: list[float] = []
    for group in packs(units, 2048):
        with torch.no_grad():
            rows = [row for index in group for row in units[index]]
            reading, _ = read_rows(base, rows, {"r": reward.contribution})
            scores += [reward.standardised(score) for score in reward.head(reading.states).tolist()]
    judge = SentimentIntensityAnalyzer()
    judged = [judge.polarity_scores(item.prompt.text + item.text)["compound"] for item in rollouts]
    for item in rollouts[:4]:
        print(f"  {item.prompt.text}|{item.text}")
    return {
        "reward": statistics.mean(scores),
        "deviation": statistics.pstdev(scores),
        "vader": statistics.mean(judged),
        "distinct_2": distinct_2([item.text for item in rollouts]),
        "length": statistics.mean(len(item.tokens.answer) for item in rollouts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=["reward", "ppo"], required=True)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--fresh", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--set", default="{}", help="JSON of settings")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    workspace = onebase.Workspace(arguments.workspace)
    paths = files(
        arguments.data,
        arguments.workspace / "files",
        arguments.rows,
        arguments.prompts,
        arguments.fresh,
    )
    base = onebase.Base.load(arguments.base)
    settings = json.loads(arguments.set)
    began = time.monotonic()
    if arguments.part == "reward":
        job = onebase.AlignJob(
            "sentiment", paths["rated"], arguments.method, template=TEMPLATE, set=settings
        )
        stored = onebase.train_reward(job, base=base, workspace=workspace)
        write(arguments.out, part="reward", method=arguments.method, **stored.metrics)
        return
    reward = reward_named("sentiment", base, workspace)
    assert isinstance(reward, LearnedReward)
    options = {"max_tokens": arguments.tokens, "steps": 40, **settings}
    job = onebase.AlignJob(
        f"review-{arguments.method}",
        paths["prompts"],
        arguments.method,
        template=TEMPLATE,
        set=options,
    )
    stored = onebase.train_ppo(job, "sentiment", base=base, workspace=workspace)
    seconds = time.monotonic() - began
    policy = load_adapter(stored.path, base)
    after = continued(base, policy, paths["fresh"], reward, arguments.tokens)
    bare = Adapter("base", {})
    before = continued(base, bare, paths["fresh"], reward, arguments.tokens)
    write(
        arguments.out,
        part="ppo",
        method=arguments.method,
        set=options,
        before=before,
        after=after,
        gain_in_deviations=(after["reward"] - before["reward"]) / before["deviation"],
        distinct_2_kept=after["distinct_2"] / before["distinct_2"],
        seconds=seconds,
        metrics=stored.metrics,
    )


if __name__ == "__main__":
    main()
