"""All serving measurements that have a bar, one after another; `--tenth` for CI.

    python bench/serving/acceptance.py --peers DIR --data DIR --out FILE.jsonl

The first DIR is the folder that `make peers` creates. Every script runs in full and prints its table; the exit
code is 1 if one fails. It takes about two hours on a quiet machine. The seeded tenth has no peers, checks no
speed, and takes minutes.
"""

import argparse
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent
LLAMA = ("--llamacpp", "{peers}/llamacpp/bin/python", "--gguf", "{peers}/q8_0/model.gguf")
VLLM = ("--vllm", "{peers}/vllm/bin/python")
FULL = [
    ("base_speed.py", *LLAMA, *VLLM, "--threads", "1"),
    ("base_speed.py", *LLAMA, *VLLM, "--threads", "2"),
    ("adapter_speed.py", *VLLM, "--threads", "1"),
    ("adapter_speed.py", *VLLM, "--threads", "2"),
    ("over_http.py", "--threads", "1"),
    ("steady.py", "--threads", "1"),
    ("steady.py", "--threads", "2"),
    ("start.py", "--threads", "2"),
    ("cold.py", "--threads", "2"),
    ("isolation.py", "--threads", "1"),
    ("isolation.py", "--threads", "2"),
    ("isolation_peers.py", *LLAMA, *VLLM, "--threads", "1"),
    ("rollouts.py", "--before", "{peers}/before/src", "--threads", "2"),
    ("quality.py", *LLAMA, "--data", "{data}", "--workspace", "{peers}/quality", "--threads", "2"),
    ("beside_training.py", "--data", "{data}/snips_train.jsonl", "--threads", "2"),
    ("load.py", "--threads", "2"),
]
TENTH = [
    ("isolation.py", "--requests", "200", "--clients", "8", "--kinds", "34", "--threads", "2"),
    ("isolation_peers.py", "--prompts", "2"),
    ("load.py", "--clients", "20", "--minutes", "0.5", "--growth", "1.2", "--threads", "2"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tenth", action="store_true")
    parser.add_argument("--only", help="the name of one script")
    arguments = parser.parse_args()
    if not arguments.tenth and arguments.peers is None:
        parser.error("Give --peers, the folder that `make peers` creates.")
    failed = []
    for name, *given in TENTH if arguments.tenth else FULL:
        if arguments.only not in (None, name):
            continue
        filled = [part.format(peers=arguments.peers, data=arguments.data) for part in given]
        if arguments.out:
            filled += ["--out", str(arguments.out)]
        print(f"\n## {name} {' '.join(given)}", flush=True)
        if subprocess.run([sys.executable, str(BENCH / name), *filled], check=False).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
