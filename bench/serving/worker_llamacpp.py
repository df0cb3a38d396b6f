"""llama.cpp's server, from the package xllamacpp. Does not need onebase.

The first line that it prints has the address and llama.cpp's system_info. It ends when stdin ends.
"""

import argparse
import json
import sys

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--context", type=int, default=1024, help="tokens per slot")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lora", help="a LoRA as GGUF, id 0")
    arguments = parser.parse_args()
    chosen = xllamacpp.CommonParams()
    chosen.model.path = arguments.gguf
    chosen.hostnames = ["127.0.0.1"]
    chosen.n_ctx = arguments.context * arguments.slots
    chosen.n_parallel = arguments.slots
    chosen.cpuparams.n_threads = arguments.threads
    chosen.cpuparams_batch.n_threads = arguments.threads
    chosen.n_gpu_layers = 0
    chosen.verbosity = 0
    if arguments.lora:
        chosen.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(arguments.lora, 0.0)]
    server = xllamacpp.Server(chosen)
    facts = {
        "address": server.listening_address,
        "xllamacpp": xllamacpp.__version__,
        "system_info": xllamacpp.get_system_info().strip(),
    }
    print(json.dumps(facts), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
