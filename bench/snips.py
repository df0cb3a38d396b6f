"""SNIPS intents: ours and PEFT's plain loop in turn, method by method.

    OMP_WAIT_POLICY=PASSIVE python bench/snips.py --peer VENV/bin/python --data DIR --out FILE.jsonl

Each side runs in a process of its own: snips_onebase.py and snips_peft.py, with the same rows, rendering,
batch and epochs. Neither sees the held-out rows before training ends; the last state is evaluated.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from onebase.model.fetch import resolve

BENCH = Path(__file__).parent
PEERS = {
    "lora": "lora",
    "p-tuning-v2": "prefix",
    "p-tuning": "p-tuning",
    "prompt-tuning": "prompt-tuning",
}


def measured(command: list[str], out: Path) -> dict[str, object]:
    """Run one side; returns its last record, with the seconds of the process."""
    began = time.perf_counter()
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    return {**json.loads(out.read_text().splitlines()[-1]), "process_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="a Python with torch, transformers, peft")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", default="5")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--methods", default=",".join(PEERS))
    parser.add_argument("--base", default="smollm2-135m")
    arguments = parser.parse_args()
    shared = ["--data", arguments.data, "--epochs", arguments.epochs]
    shared += ["--threads", arguments.threads]
    for method in arguments.methods.split(","):
        ours = [sys.executable, str(BENCH / "snips_onebase.py"), "--base", arguments.base]
        ours += ["--methods", method, "--set", json.dumps({"held_out": 0})]
        theirs = [arguments.peer, str(BENCH / "snips_peft.py"), "--methods", PEERS[method]]
        theirs += ["--base", str(resolve(arguments.base)), "--eval-at", arguments.epochs]
        for side, command in (("onebase", ours), ("peft", theirs)):
            scratch = arguments.out.with_suffix(f".{side}.part")
            result = measured([*command, *shared], scratch)
            line = {"side": side, "of": method, **result}
            with arguments.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
            print(line, flush=True)
            scratch.unlink()


if __name__ == "__main__":
    main()
