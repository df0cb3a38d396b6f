"""The peer side of the training-speed comparison: PEFT in a plain padded loop, as a worker.

Needs torch, transformers==5.23.0 and peft==0.21.2, but not onebase. Each line on stdin is a number of
steps to train. The answer on stdout is one JSON line with the seconds and the real tokens (no padding, no
virtual tokens).
"""

import argparse
import json
import sys
import time

import torch
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

CONFIGS = {
    "lora": lambda: LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
    ),
    "prompt-tuning": lambda: PromptTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
    "p-tuning": lambda: PromptEncoderConfig(
        num_virtual_tokens=20,
        encoder_reparameterization_type="MLP",
        encoder_hidden_size=256,
        task_type="CAUSAL_LM",
    ),
    "p-tuning-v2": lambda: PrefixTuningConfig(num_virtual_tokens=20, task_type="CAUSAL_LM"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--rows", required=True, help="JSON lines: prompt, answer (texts)")
    parser.add_argument("--method", choices=CONFIGS, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    model = get_peft_model(model, CONFIGS[arguments.method]())
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    with open(arguments.rows, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    pairs = [(ids(row["prompt"]), ids(row["answer"])) for row in rows]
    at = 0
    for line in sys.stdin:
        steps = int(line)
        tokens = 0
        began = time.perf_counter()
        for _ in range(steps):
            batch = [pairs[(at + index) % len(pairs)] for index in range(arguments.batch)]
            at += arguments.batch
            width = max(len(prompt) + len(answer) for prompt, answer in batch)
            inputs = torch.zeros(len(batch), width, dtype=torch.long)
            mask, labels = torch.zeros_like(inputs), torch.full_like(inputs, -100)
            for row, (prompt, answer) in enumerate(batch):
                end = len(prompt) + len(answer)
                inputs[row, :end] = torch.tensor(prompt + answer)
                mask[row, :end] = 1
                labels[row, len(prompt) : end] = torch.tensor(answer)
            tokens += int(mask.sum())
            model(input_ids=inputs, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
