"""Checks that a change of the source does not change results or files, by SHA-256 of command output.

    python bench/unchanged.py --tree OLD --out old.json
    python bench/unchanged.py --tree NEW --begun-by OLD --out new.json --compare old.json

`--tree` is a checkout; its `src` runs as `onebase`, with one thread. Recorded are:

- adapters of every method after 3 steps, trained alone and all together
- adapters of DPO, KTO, a reward model, PPO and GRPO after 2 steps
- the winner of a race
- a run that was killed and resumed (with `--begun-by`, another tree starts it, which checks that old
  checkpoints can be read)
- answers and margins of greedy requests in fp32 and w8a8
- the paths of all keys in JSON output

Run both trees on the same machine, because processors differ in the last bit. Exit code 1 if anything
differs.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAIN = "import sys; from onebase.cli.app import main; sys.exit(main())"
METHODS = (
    "full",
    "lora",
    "qlora",
    "ia3",
    "prompt-tuning",
    "p-tuning",
    "p-tuning-v2",
    "lora+p-tuning",
)
DEMO = "src/onebase/demo/en"
ROWS = 6  # in batches of 2: 3 steps
REWARD = "def polite(prompt, answer, row):\n    return float(len(answer) % 7)\n"
SETTINGS = ("batch_size=2", "epochs=1", "held_out=0", "save_seconds=0")


class Tree:
    """The `onebase` of one checkout, with a workspace."""

    def __init__(self, root: Path, workspace: Path) -> None:
        self.workspace = workspace
        self.keys: dict[str, list[str]] = {}
        self._environment = {
            **os.environ,
            "PYTHONPATH": f"{root.resolve() / 'src'}:{workspace}",
            "OMP_NUM_THREADS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "ONEBASE_LANG": "en",
        }

    def start(self, *given: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", MAIN, *map(str, given), "--workspace", str(self.workspace)]
        return subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, what: str, *given: object) -> Any:
        """Run a command; returns the last JSON value that it prints."""
        process = self.start(*given, "--json")
        out, err = process.communicate()
        if process.returncode:
            raise SystemExit(f"{what}: exit {process.returncode}\n{out}\n{err}")
        values = [json.loads(line) for line in out.splitlines() if line.strip()]
        self.keys[what] = sorted({path for value in values for path in paths(value)})
        return values[-1] if values else None

    def weights(self, task: str) -> str:
        """The SHA-256 of the newest weights of a task."""
        folder = self.workspace / "adapters" / task
        newest = max(
            (path for path in folder.iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
        )
        digest = hashlib.sha256()
        for file in sorted(newest.glob("*model*.safetensors")):
            digest.update(file.read_bytes())
        return digest.hexdigest()


def paths(value: Any, path: str = "") -> Iterator[str]:
    """The path of every key in a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}.{key}"
            yield from paths(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value[:3]:
            yield from paths(item, f"{path}[]")


def lines(source: Path, target: Path, count: int) -> Path:
    target.write_text(
        "\n".join(source.read_text(encoding="utf-8").splitlines()[:count]) + "\n", "utf-8"
    )
    return target


def settings(*given: str) -> list[str]:
    return [part for one in given for part in ("--set", one)]


def recorded(root: Path, begun_by: Path | None) -> dict[str, Any]:
    """Record everything in a new workspace."""
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        tree = Tree(root, here)
        demo = root / DEMO
        data = lines(demo / "support.jsonl", here / "data.jsonl", ROWS)
        pairs = lines(demo / "tone.jsonl", here / "pairs.jsonl", 6)
        judged = here / "judged.jsonl"
        with judged.open("w", encoding="utf-8") as file:
            for line in pairs.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                for column, label in (("chosen", True), ("rejected", False)):
                    kto = {"prompt": row["prompt"], "completion": row[column], "label": label}
                    file.write(json.dumps(kto) + "\n")
        prompts = here / "prompts.jsonl"
        asked = [
            json.loads(line)["prompt"] for line in (demo / "tone.jsonl").open(encoding="utf-8")
        ]
        prompts.write_text(
            "".join(json.dumps({"prompt": text}) + "\n" for text in asked[:8]), "utf-8"
        )
        (here / "judge.py").write_text(REWARD, "utf-8")

        def keep(name: str, task: str) -> None:
            results[name] = tree.weights(task)
            print(f"{name}: {results[name][:16]}", file=sys.stderr)

        for method in METHODS:
            task = method.replace("+", "-and-")
            precision_flags = ["--precision", "nf4"] if method == "qlora" else []
            tree.run(
                f"train {method}",
                *("train", "--task", task, "--data", data, "--method", method, "--seed", 7),
                *(*precision_flags, *settings(*SETTINGS)),
            )
            keep(method, task)
        joint = here / "tasks.yaml"
        together = [name for name in METHODS if name not in ("full", "qlora")]
        jobs = [
            {
                "task": f"joint-{name.replace('+', '-and-')}",
                "data": str(data),
                "method": name,
                "set": {"batch_size": 2, "epochs": 1, "held_out": 0},
            }
            for name in together
        ]
        joint.write_text(json.dumps({"jobs": jobs}), "utf-8")
        tree.run("train together", "train", "--config", joint)
        for job in jobs:
            keep(f"together {job['method']}", str(job["task"]))
        two = settings("batch_size=2", "epochs=1", "held_out=0.3")
        ppo = settings("steps=2", "prompts=2", "max_tokens=8")
        aligned: dict[str, list[object]] = {
            "reward": ["--data", pairs, "--method", "lora", *two],
            "dpo": ["--data", pairs, "--from", "lora", *two],
            "kto": [
                "--data",
                judged,
                "--from",
                "lora",
                *settings("batch_size=4", "epochs=1", "held_out=0.3"),
            ],
            "ppo": ["--prompts", prompts, "--reward", "judge:polite", "--from", "lora", *ppo],
            "grpo": [
                *("--prompts", prompts, "--reward", "judge:polite", "--from", "lora"),
                *("--advantage", "group", *ppo, "--set", "samples=2"),
            ],
        }
        for kind, given in aligned.items():
            command = "ppo" if kind == "grpo" else kind
            tree.run(f"align {kind}", "align", command, "--task", f"a-{kind}", *given)
            keep(f"align {kind}", f"a-{kind}")
        tree.run(
            "race",
            *(
                "race",
                "--task",
                "raced",
                "--data",
                lines(demo / "support.jsonl", here / "race.jsonl", 12),
            ),
            *("--budget", "4000tokens", "--configs", 3, "--methods", "lora,ia3", "--seed", 7),
        )
        keep("race", "raced")
        resumed(tree, Tree(begun_by or root, here), here / "race.jsonl")
        keep("resumed", "resumed")
        requests = here / "requests.jsonl"
        names = ("base", "lora", "ia3", "prompt-tuning", "p-tuning-v2")
        requests.write_text(
            "".join(
                json.dumps({"task": names[at % len(names)], "input": text}) + "\n"
                for at, text in enumerate(asked[:20])
            ),
            "utf-8",
        )
        for precision in ("fp32", "w8a8"):
            answers = tree.run(
                f"generate {precision}",
                *("generate", "--file", requests, "--max-tokens", 16, "--precision", precision),
            )
            results[f"answers {precision}"] = hashlib.sha256(
                json.dumps(answers).encode()
            ).hexdigest()
        tree.run("adapters list", "adapters", "list")
        tree.run("runs list", "runs", "list")
        tree.run("doctor", "doctor")
        files = {
            str(path.relative_to(here)).split("/")[-1]: sorted(
                {
                    key
                    for line in path.read_text("utf-8").splitlines()
                    for key in paths(json.loads(line))
                }
            )
            for path in sorted(here.glob("runs/*/metrics.jsonl"))
        }
    return {"results": results, "keys": {**tree.keys, **files}}


def resumed(tree: Tree, first: Tree, data: Path) -> None:
    """Start a run with `first`, kill it once it has a checkpoint, and resume it with `tree`."""
    process = first.start(
        *("train", "--task", "resumed", "--data", data, "--method", "lora", "--seed", 7),
        *settings("batch_size=2", "epochs=6", "held_out=0", "save_seconds=0"),
    )
    known = set(tree.workspace.glob("runs/*"))
    end = time.monotonic() + 120
    while True:
        new = set(tree.workspace.glob("runs/*")) - known
        if any(path.is_dir() for run in new for path in run.glob("checkpoints/*")):
            break
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit("The run to resume wrote no checkpoint in time.")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (run,) = new
    tree.run("resume", "resume", run.name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--begun-by", type=Path, help="the tree that starts the resumed run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compare", type=Path, help="the record of another tree")
    arguments = parser.parse_args()
    record = recorded(arguments.tree, arguments.begun_by)
    arguments.out.write_text(json.dumps(record, indent=1), "utf-8")
    print(f"{len(record['results'])} results, the keys of {len(record['keys'])} outputs")
    if arguments.compare is None:
        return
    before = json.loads(arguments.compare.read_text("utf-8"))
    different = [
        f"{part}, {name}"
        for part in ("results", "keys")
        for name in sorted(set(before[part]) | set(record[part]))
        if before[part].get(name) != record[part].get(name)
    ]
    print("\n".join(different) or "nothing differs")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
