"""transformers' generate and PEFT, as their users run them: left-padded batches, greedy, fp32.

Needs torch, transformers==5.23.0 and peft==0.21.2, but not onebase. `--way` is one of

- `generate`: the base alone
- `adapter_names`: all LoRAs loaded, one named for each row
- `set_adapter`: every adapter loaded (with one copy of the base for each kind, as PEFT requires), and the
  requests grouped by task
- `from_pretrained`: the adapter of each request is read from its files in turn.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM


class Side:
    def __init__(self, base: str, way: str, adapters: Sequence[tuple[str, str]]) -> None:
        self._base, self._way = base, way
        self._folders = dict(adapters)
        self._kinds = {name: _kind(folder) for name, folder in adapters}
        self._models: dict[str, Any] = {}
        if way in ("generate", "from_pretrained"):
            self._bare = self._load()
        for name, folder in adapters if way in ("adapter_names", "set_adapter") else ():
            kind = self._kinds[name]
            if kind in self._models:
                self._models[kind].load_adapter(folder, name)
            else:
                model = PeftModel.from_pretrained(self._load(), folder, adapter_name=name)
                self._models[kind] = model.eval()

    def _load(self) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self._base, dtype=torch.float32)
        return model.eval()

    def answers(self, requests: Sequence[tuple[str, list[int]]], tokens: int) -> list[list[int]]:
        prompts = [ids for _, ids in requests]
        names = [name for name, _ in requests]
        if self._way == "generate":
            return _generate(self._bare, prompts, tokens)
        if self._way == "adapter_names":
            model = self._models["LORA"]
            named = ["__base__" if name == "base" else name for name in names]
            return _generate(model, prompts, tokens, adapter_names=named)
        if self._way == "set_adapter":
            return self._grouped(names, prompts, tokens)
        answers = []
        for name, ids in requests:
            model = PeftModel.from_pretrained(self._bare, self._folders[name]).eval()
            answers += _generate(model, [ids], tokens)
            if model.active_peft_config.is_prompt_learning:
                self._bare = model.get_base_model()
            else:
                self._bare = model.unload()
        return answers

    def _grouped(
        self, names: Sequence[str], prompts: Sequence[list[int]], tokens: int
    ) -> list[list[int]]:
        by_row: dict[int, list[int]] = {}
        for name in dict.fromkeys(names):
            rows = [at for at, other in enumerate(names) if other == name]
            model = self._models[self._kinds[name]]
            model.set_adapter(name)
            answers = _generate(model, [prompts[at] for at in rows], tokens)
            by_row |= dict(zip(rows, answers, strict=True))
        return [by_row[at] for at in range(len(names))]


def _kind(folder: str) -> str:
    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    return str(config["peft_type"])


def _generate(
    model: Any, prompts: Sequence[list[int]], tokens: int, **more: Any
) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    with torch.inference_mode():
        whole = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            **more,
        )
    answers: list[list[int]] = whole[:, -tokens:].tolist()
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--way", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--adapters", default="[]", help="JSON: [[task, folder], …]")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    side = Side(arguments.base, arguments.way, json.loads(arguments.adapters))
    libraries = {item.__name__: item.__version__ for item in (torch, transformers, peft)}
    print(json.dumps(libraries), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        began = time.perf_counter()
        answers = side.answers(job["requests"], job["tokens"])
        seconds = time.perf_counter() - began
        print(
            json.dumps({"seconds": seconds, "tokens": sum(map(len, answers)), "answers": answers}),
            flush=True,
        )


if __name__ == "__main__":
    main()
