"""Advice for a training that does not fit, the largest effect first.

The effects are rough estimates from the sizes of what is kept in memory; they give the order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from onebase.adapters.full import FULL
from onebase.adapters.methods import parts_of
from onebase.language import say
from onebase.model.precision import Precision, choose
from onebase.model.sizes import Sizes
from onebase.quantity import size
from onebase.training.job import Job

# A weight of a trained copy in fp32: itself, its gradient, AdamW's two moments, the best state so far.
FULL_BYTES = 20
_CHECKPOINTED = 0.7  # share of what is kept for the backward pass, from bench/memory.py
_HALF = 0.5


@dataclass(frozen=True)
class Pass:
    """The heaviest pass: its `tokens`, the `rows` they are of, the `longest` row's tokens, and the
    bytes `kept` for its backward pass.
    """

    tokens: int
    rows: int
    longest: int
    kept: int


def memory_advice(
    jobs: Sequence[Job], precision: Precision, sizes: Sizes, heaviest: Pass | None
) -> list[str]:
    """The changes that save memory, without those that the jobs have already made. `heaviest` is None if
    no pass was tried.
    """
    advice = [*_of_weights(jobs, precision, sizes), *_of_jobs(jobs, sizes)]
    if heaviest is not None:
        advice += _of_pass(jobs, heaviest)
    advice.sort(key=lambda item: -item[0])
    return [text for _, text in advice] + [_smallest(jobs, precision)]


def disk_advice(jobs: Sequence[Job]) -> list[str]:
    """The changes that save disk space."""
    limit = max(job.options()[0].save_limit for job in jobs)
    place = say(
        "Make room on the disk of the workspace, or choose another with --workspace.",
        "请清理工作区所在磁盘，或用 --workspace 换到其他磁盘。",
    )
    if limit == 1:
        return [place]
    fewer = say(
        f"save_limit=1 keeps one checkpoint, not {limit}.",
        f"save_limit=1：只保留一个检查点，而不是 {limit} 个。",
    )
    return [fewer, place]


def _of_weights(jobs: Sequence[Job], precision: Precision, sizes: Sizes) -> list[tuple[float, str]]:
    full = [job.task for job in jobs if job.method == FULL]
    if full:
        names, saved = ", ".join(full), FULL_BYTES * sizes.parameters * len(full)
        text = say(
            f"{names}: method lora instead of full learns a small part of the weights (about "
            f"{size(saved)} less).",
            f"{names}：改用 lora 代替 full，只学习很小一部分参数（约省 {size(saved)}）。",
        )
        return [(saved, text)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    smaller = choose("nf4", device=device, stored=torch.float32)
    saved = sizes.held_in(precision) - sizes.held_in(smaller)
    text = say(
        f"--precision nf4 holds the base in 4 bits (about {size(saved)} less); lora on it is "
        "called qlora.",
        f"--precision nf4：基座以 4 比特存放（约省 {size(saved)}）；在其上的 lora 即 qlora。",
    )
    return [(saved, text)] if saved > 0 else []


def _of_jobs(jobs: Sequence[Job], sizes: Sizes) -> list[tuple[float, str]]:
    """Fewer jobs at once."""
    if len(jobs) < 2:
        return []
    full = sum(job.method == FULL for job in jobs)
    text = say(
        f"Train the {len(jobs)} jobs one after another, not together.",
        f"将 {len(jobs)} 个任务分开依次训练，而不是一起训练。",
    )
    return [(FULL_BYTES * sizes.parameters * max(0, full - 1), text)]


def _of_pass(jobs: Sequence[Job], heaviest: Pass) -> list[tuple[float, str]]:
    """Less kept for the backward pass."""
    advice = []
    options = [job.options()[0] for job in jobs]
    if not any(item.gradient_checkpointing for item in options):
        saved = _CHECKPOINTED * heaviest.kept
        text = say(
            "gradient_checkpointing=true keeps less of every pass and computes it twice, with the "
            f"same numbers (about {size(saved)} less, a third slower).",
            "gradient_checkpointing=true：少存中间结果并重算一次，数值不变（约省 "
            f"{size(saved)}，约慢三分之一）。",
        )
        advice.append((saved, text))
    largest = max(options, key=lambda item: item.batch_size)
    if largest.batch_size > 1 and heaviest.rows > 1:
        smaller = min(largest.batch_size, heaviest.rows) // 2
        turns = -(-largest.batch_size * largest.accumulation // smaller)
        saved = heaviest.kept * (1 - smaller / heaviest.rows)
        text = say(
            f"batch_size={smaller} with accumulation={turns} learns from as many rows a step, fewer "
            f"at a time (about {size(saved)} less).",
            f"batch_size={smaller} 加 accumulation={turns}：每步行数不变，每次处理更少的行（约省 "
            f"{size(saved)}）。",
        )
        advice.append((saved, text))
    shorter = max(8, heaviest.longest // 2)
    if heaviest.longest > _HALF * heaviest.tokens and shorter < heaviest.longest:
        saved = heaviest.kept * (1 - shorter / heaviest.longest) * _HALF
        text = say(
            f"max_tokens={shorter} cuts the longest rows, now of {heaviest.longest} tokens (about "
            f"{size(saved)} less).",
            f"max_tokens={shorter}：截短最长的行（现为 {heaviest.longest} 个词元，约省 "
            f"{size(saved)}）。",
        )
        advice.append((saved, text))
    return advice


def _smallest(jobs: Sequence[Job], precision: Precision) -> str:
    """The advice for when the rest is not enough."""
    methods = {name for job in jobs for name in parts_of(job.method)}
    checkpointing = any(job.options()[0].gradient_checkpointing for job in jobs)
    if methods == {"p-tuning-v2"} and precision.name == "nf4" and checkpointing:
        return say(
            "This is the smallest way to train here: free some memory, or take a smaller base.",
            "这已是占用最小的训练方式：请释放内存，或换用更小的基座。",
        )
    return say(
        "The smallest of all is p-tuning-v2 with --precision nf4 and gradient_checkpointing=true; "
        "else free some memory, or take a smaller base.",
        "占用最小的是 p-tuning-v2 加 --precision nf4 和 gradient_checkpointing=true；"
        "否则请释放内存，或换用更小的基座。",
    )
