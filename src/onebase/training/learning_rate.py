"""Learning rates: those of each method's parameters, and their schedule over the steps."""

import math
from typing import Any

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import METHODS, parts_of, settings_by_method
from onebase.training.job import Job
from onebase.training.options import TrainOptions


def parameter_groups(adapter: Adapter, job: Job) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: each method's learning rate, and LoRA+'s for `b`."""
    settings, _ = settings_by_method(job.method, job.set)
    rates, beta2s = job.rates(), job.beta2s()
    groups = []
    for name in parts_of(job.method):
        part = getattr(adapter, METHODS[name].part)
        common = {"lr": rates[name], "betas": (0.9, beta2s[name])}
        ratio = float(settings[name].get("loraplus_lr_ratio", 1.0))
        faster = list(part.b) if ratio != 1 else []
        faster_ids = {id(parameter) for parameter in faster}
        rest = [parameter for parameter in part.parameters() if id(parameter) not in faster_ids]
        groups.append({"params": rest, **common})
        if faster:
            groups.append({"params": faster, **common, "lr": rates[name] * ratio})
    return groups


def learning_rate_factor(options: TrainOptions, step: int, total: int) -> float:
    """The factor on the peak learning rate at a step, counted from 0, of `total`."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    if options.schedule == "constant":
        return 1.0
    share = (step - options.warmup) / max(1, total - options.warmup)
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return max(0.0, 1 - share)
