"""Answers from llama.cpp, for test_llama_cpp.py. Run by a Python that has xllamacpp, not onebase.

Reads one JSON object from stdin: {"model": file, "lora": file or null, "out": file, "requests":
[{"path", "body"}]}; writes the server's answers to them, in order, as one JSON array into `out`.
"""

import json
import sys
import urllib.request
from pathlib import Path

import xllamacpp


def main() -> None:
    asked = json.load(sys.stdin)
    server = xllamacpp.Server(parameters(asked["model"], asked["lora"]))
    answers = [post(server.listening_address, **request) for request in asked["requests"]]
    Path(asked["out"]).write_text(json.dumps(answers), encoding="utf-8")


def parameters(model: str, lora: str | None) -> xllamacpp.CommonParams:
    """One slot, one thread, and float32 all the way: a cache in float16 would blur the logits."""
    chosen = xllamacpp.CommonParams()
    chosen.model.path = model
    chosen.n_ctx = 1024
    chosen.n_parallel = 1
    chosen.cpuparams.n_threads = 1
    chosen.cpuparams_batch.n_threads = 1
    chosen.n_gpu_layers = 0
    chosen.warmup = False
    chosen.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    chosen.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    chosen.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if lora is not None:
        chosen.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    return chosen


def post(address: str, path: str, body: dict[str, object]) -> object:
    request = urllib.request.Request(
        address + path,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


if __name__ == "__main__":
    main()
