"""The peer side of the training-speed comparison: TRL's SFTTrainer, as a worker.

Needs torch, trl==1.16.0, transformers==5.23.0 and peft==0.21.2, but not onebase. Each line on stdin is a
number of steps to train. The answer on stdout is one JSON line with the seconds and the real tokens (no
padding, no virtual tokens). Gradient checkpointing is off (TRL's default would compute everything twice), the
loss is on the completion only, and nothing is logged or saved.
"""

import argparse
import json
import sys
import tempfile
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from speed_peft import CONFIGS


class OnDemand(TrainerCallback):
    """Lets the trainer take the number of steps read from stdin, then prints the result."""

    def __init__(self, tokens: list[int]) -> None:
        self.left = 0
        self.tokens = tokens

    def on_step_begin(self, arguments, state, control, **_):
        if self.left:
            return
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        self.left = int(line)
        self.tokens[0] = 0
        self.began = time.perf_counter()

    def on_step_end(self, arguments, state, control, **_):
        self.left -= 1
        if not self.left:
            seconds = time.perf_counter() - self.began
            print(json.dumps({"seconds": seconds, "tokens": self.tokens[0]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--rows", required=True, help="JSON lines: prompt, answer (texts)")
    parser.add_argument("--method", choices=CONFIGS, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    with open(arguments.rows, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    tokenized = []
    for row in rows:
        prompt, answer = ids(row["prompt"]), ids(row["answer"])
        mask = [0] * len(prompt) + [1] * len(answer)
        tokenized.append({"input_ids": prompt + answer, "completion_mask": mask})
    tokens = [0]
    model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=arguments.batch,
            max_steps=1_000_000,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_length=None,
            completion_only_loss=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(tokenized),
        processing_class=tokenizer,
        peft_config=CONFIGS[arguments.method](),
        callbacks=[OnDemand(tokens)],
    )
    step = trainer.training_step

    def counted(model, inputs, *rest):
        tokens[0] += int(inputs["attention_mask"].sum())
        return step(model, inputs, *rest)

    trainer.training_step = counted
    trainer.train()


if __name__ == "__main__":
    main()
