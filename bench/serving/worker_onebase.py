"""Our engine without the server, in a process of its own. Started by sides.Worker."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

import onebase
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.engine.engine import Engine
from onebase.engine.sampling import Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workspace", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = onebase.Base.load(arguments.base, precision=arguments.precision)
    stored = AdapterStore(Workspace(arguments.workspace)).list() if arguments.workspace else []
    engine = Engine(base, stored)
    print(json.dumps({"torch": torch.__version__, "precision": str(base.precision)}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        tokens = job["tokens"]
        sampling = Sampling(max_tokens=tokens, min_tokens=tokens)
        began = time.perf_counter()
        requests = [engine.add_request(task, ids, sampling) for task, ids in job["requests"]]
        while not engine.idle:
            engine.step()
        seconds = time.perf_counter() - began
        answers = [request.tokens for request in requests]
        print(
            json.dumps({"seconds": seconds, "tokens": sum(map(len, answers)), "answers": answers}),
            flush=True,
        )


if __name__ == "__main__":
    main()
