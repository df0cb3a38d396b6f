"""The peer side of the PPO comparison: TRL 1.12.0's experimental PPOTrainer in a process of its own.

Needs torch, transformers==5.23.0, peft==0.21.2, accelerate, datasets and trl==1.12.0, but not onebase. The
policy is a LoRA on all linear layers, and the reference is the policy without it. The reward and value models
are sequence classifiers on the same base. Prints one JSON line: seconds of every step, peak resident bytes.
"""

import argparse
import json
import resource
import tempfile
import time
from itertools import pairwise

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.marks = [time.perf_counter()]

    def on_step_end(self, *_: object, **__: object) -> None:
        self.marks.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--prompts", required=True, help="JSON lines: prompt")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with open(arguments.prompts, encoding="utf-8") as file:
        texts = [json.loads(line)["prompt"] for line in file]
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    policy = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    scored = [
        AutoModelForSequenceClassification.from_pretrained(
            arguments.base, num_labels=1, dtype=torch.float32
        )
        for _ in range(2)
    ]
    for model in scored:
        model.config.pad_token_id = tokenizer.pad_token_id
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=arguments.batch,
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=arguments.epochs,
            total_episodes=arguments.batch * arguments.steps,
            response_length=arguments.tokens,
            local_rollout_forward_batch_size=arguments.batch,
            temperature=1.0,
            stop_token=None,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            num_sample_generations=0,
            save_strategy="no",
            report_to=[],
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=None,
            reward_model=scored[0],
            value_model=scored[1],
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[: arguments.batch]),
            peft_config=LoraConfig(
                r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[clock],
        )
        trainer.train()
    seconds = [b - a for a, b in pairwise(clock.marks)]
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
