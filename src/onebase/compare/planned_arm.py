"""The arms of a comparison before they are measured: each method with each seed, as a job."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from onebase.adapters.methods import METHODS, parse_options, parts_of, settings_by_method
from onebase.compare.data import ComparisonData
from onebase.compare.options import CompareOptions, settings_for
from onebase.compare.result import BASE, EXAMPLES
from onebase.model.base import Base
from onebase.runs.identity import identity_of
from onebase.training.job import Job

# Counted up when arms are measured in another way, so that none from before is used again.
_MEASURED_AS = 1


@dataclass(frozen=True)
class PlannedArm:
    """A method with a seed (None: the base's rows that draw nothing). `job` trains it; None for the
    base. `alone`: in a process of its own. `identity` is a hash of all that decides what is measured,
    `tuning` one of what a race for the method's settings rests on.
    """

    method: str
    seed: int | None
    job: Job | None
    alone: bool
    identity: str
    tuning: str = ""

    @property
    def four_bit(self) -> bool:
        """Whether it is trained on a base in nf4."""
        return self.job is not None and "qlora" in parts_of(self.method)


def planned_arms(
    job: Job, options: CompareOptions, base: Base, data: ComparisonData
) -> list[PlannedArm]:
    """The base's rows, then every method with every seed. Raises UsageError for a setting that no
    method has.
    """
    shared = {
        "rows": data.digest(),
        "kind": data.kind,
        "base": base.content,
        "template": data.template.config(),
        "answer_tokens": options.answer_tokens,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "machine": machine(),
        "measured_as": _MEASURED_AS,
    }

    def arm(method: str, seed: int | None, trained: Job | None, facts: Any) -> PlannedArm:
        alone = options.alone and trained is not None and seed == job.seed
        same = {**shared, "method": method, "seed": seed, "alone": alone, "facts": facts}
        tuning = identity_of({**shared, "method": method, "facts": facts})
        return PlannedArm(method, seed, trained, alone, identity_of(same), tuning)

    seeds = range(job.seed, job.seed + options.seeds)
    precision = base.precision.text
    arms = [arm(BASE, None, None, precision)]
    arms += [arm(EXAMPLES, seed, None, [precision, options.examples]) for seed in seeds]
    for method in options.methods:
        trained = job_of(job, method, options.methods)
        settings = trained.options()
        quantized = precision.partition(":")[0] == "nf4"
        four_bit = "nf4" if "qlora" in parts_of(method) and not quantized else precision
        facts: list[Any] = [
            four_bit,
            settings[0].model_dump(),
            _options_in_full(method, settings[1]),
        ]
        facts += [trained.rates(), trained.beta2s()]
        if options.tune is not None:  # what the race chooses follows from the rest
            facts.append({"tune": options.tune, "seed": job.seed})
        for seed in seeds:
            task = f"{method.replace('+', '-')}-{seed}"
            arms.append(arm(method, seed, replace(trained, task=task, seed=seed), facts))
    return arms


def _options_in_full(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The options of every part of a method, the defaults among them."""
    by_method, _ = settings_by_method(method, settings)
    return {
        name: parse_options(METHODS[name].options, given).model_dump()
        for name, given in by_method.items()
    }


def job_of(job: Job, method: str, methods: Sequence[str]) -> Job:
    """The job of one method, with those of the given settings that are for it."""
    return replace(job, method=method, set=settings_for(method, job.set, methods))


@cache
def machine() -> dict[str, Any]:
    """What measured times depend on: the processor or GPU, and the number of threads."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"device": device, "threads": torch.get_num_threads()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()
