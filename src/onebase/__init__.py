"""onebase: one frozen base model, many adapters of any kind, one forward pass."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before torch is loaded, which reads it once: threads that spin for long while they wait for each
# other make training thirty times slower as soon as another process wants a core, and those that
# never spin a quarter slower on a quiet machine (LOG.md, 2026-11-24). The user's own choice stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

if TYPE_CHECKING:
    from onebase.adapters.store import AdapterStore, StoredAdapter
    from onebase.adapters.workspace import Workspace
    from onebase.align.dpo import train_dpo
    from onebase.align.job import AlignJob
    from onebase.align.kto import train_kto
    from onebase.align.ppo import train_ppo
    from onebase.align.reward_model import train_reward
    from onebase.align.scoring import score_answers
    from onebase.engine.engine import Answer, Engine
    from onebase.engine.request import Request
    from onebase.engine.sampling import Sampling
    from onebase.errors import OnebaseError
    from onebase.model.base import Base
    from onebase.runs.observer import Observer
    from onebase.training.job import Job
    from onebase.training.train import train

__all__ = [
    "AdapterStore",
    "AlignJob",
    "Answer",
    "Base",
    "Engine",
    "Job",
    "Observer",
    "OnebaseError",
    "Request",
    "Sampling",
    "StoredAdapter",
    "Workspace",
    "score_answers",
    "train",
    "train_dpo",
    "train_kto",
    "train_ppo",
    "train_reward",
]
__version__ = "0.1.0"

# Where each name is. Modules are imported when a name is first asked for: torch and transformers take
# seconds, and most commands need neither.
_MODULES = {
    "AdapterStore": "onebase.adapters.store",
    "AlignJob": "onebase.align.job",
    "Answer": "onebase.engine.engine",
    "Base": "onebase.model.base",
    "Engine": "onebase.engine.engine",
    "Job": "onebase.training.job",
    "Observer": "onebase.runs.observer",
    "OnebaseError": "onebase.errors",
    "Request": "onebase.engine.request",
    "Sampling": "onebase.engine.sampling",
    "StoredAdapter": "onebase.adapters.store",
    "Workspace": "onebase.adapters.workspace",
    "score_answers": "onebase.align.scoring",
    "train": "onebase.training.train",
    "train_dpo": "onebase.align.dpo",
    "train_kto": "onebase.align.kto",
    "train_ppo": "onebase.align.ppo",
    "train_reward": "onebase.align.reward_model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
