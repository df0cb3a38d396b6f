"""onebase: one frozen base model, many adapters of any kind, one forward pass."""

import os

# Before torch is loaded, which reads it once: waiting threads that spin make training thirty times
# slower as soon as another process wants a core (LOG.md, 2026-11-24). The user's own choice stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.engine.engine import Answer, Engine
from onebase.engine.sampling import Sampling
from onebase.errors import OnebaseError
from onebase.model.base import Base
from onebase.training.job import Job
from onebase.training.train import train

__all__ = [
    "AdapterStore",
    "Answer",
    "Base",
    "Engine",
    "Job",
    "OnebaseError",
    "Sampling",
    "StoredAdapter",
    "Workspace",
    "train",
]
__version__ = "0.1.0"
