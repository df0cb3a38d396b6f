"""A store of adapters on a tiny base, and a server over it in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.model.base import Base

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "ia3": {},
    "prompt-tuning": {"virtual_tokens": 5},
    "p-tuning-v2": {"virtual_tokens": 6},
}

StoreTask = Callable[..., StoredAdapter]


@pytest.fixture
def base(make_base: Callable[..., Base]) -> Base:
    return make_base()


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(Workspace(tmp_path / "ws"))


@pytest.fixture
def store_task(store: AdapterStore, base: Base) -> StoreTask:
    """Store a shaken adapter as the task's next version."""

    def make(
        task: str,
        method: str = "lora",
        *,
        seed: int = 0,
        instruction: str | None = None,
        promote: bool = True,
        on: Base | None = None,
        record: dict[str, Any] | None = None,
    ) -> StoredAdapter:
        used = on or base
        adapter = build_adapter(used, method, METHODS[method], init_text="hello, you", seed=seed)
        torch.manual_seed(seed)
        for parameter in adapter.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        known = {
            "base": used.name,
            "base_fingerprint": used.fingerprint,
            "precision": used.precision.text,
            "method": method,
            "template": Template(used.tokenizer, instruction=instruction).config(),
            **(record or {}),
        }
        return store.add(
            task, lambda folder: save_adapter(adapter, folder, used), known, promote=promote
        )

    return make
