"""The same pass on a GPU: what it gives there against what it gives on the CPU."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import onebase
from onebase.adapters.adapter import Adapter
from onebase.adapters.workspace import Workspace
from onebase.engine.engine import Engine
from onebase.engine.rows import TokenRow, token_losses
from onebase.model.base import Base
from onebase.model.precision import choose
from onebase.planning.plan import plan
from onebase.training.job import Job

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
Rows = Callable[..., list[TokenRow]]
JOBS = {
    "a": ("lora", {"rank": 4, "learning_rate": 1e-3}),
    "b": ("prompt-tuning", {"virtual_tokens": 5}),
    "c": ("p-tuning", {"virtual_tokens": 5, "hidden": 16}),
    "d": ("p-tuning-v2", {"virtual_tokens": 5, "layers": "top:1"}),
}


def held(base: Base, precision: str, device: str = DEVICE) -> Base:
    base.hold_in(choose(precision, device=device, stored=torch.float32), device)
    return base


def losses_and_gradients(
    base: Base, adapters: dict[str, Adapter], rows: list[TokenRow], *, checkpointing: bool = False
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Adapters stay where they are made; the pass takes what it needs to the base's device."""
    contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
    losses, _ = token_losses(base, rows, contributions, checkpointing=checkpointing)
    parameters = [p for adapter in adapters.values() for p in adapter.parameters()]
    gradients = torch.autograd.grad(losses.mean(), parameters)
    return losses.detach().cpu(), [gradient.cpu() for gradient in gradients]


def moved(adapters: dict[str, Adapter]) -> dict[str, Adapter]:
    return {name: copy.deepcopy(adapter).to(DEVICE) for name, adapter in adapters.items()}


def test_losses_and_gradients_equal_the_cpus(
    base: Base,
    architecture: str,
    make_base: Callable[..., Base],
    adapters: dict[str, Adapter],
    make_rows: Rows,
) -> None:
    rows = [row for name in [None, *adapters] for row in make_rows(name, shared=5)]
    expected, expected_gradients = losses_and_gradients(base, adapters, rows)
    on_gpu = held(make_base(architecture), "fp32")
    for checkpointing in (False, True):
        losses, gradients = losses_and_gradients(
            on_gpu, moved(adapters), rows, checkpointing=checkpointing
        )
        torch.testing.assert_close(losses, expected, atol=5e-4, rtol=0)
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            scale = max(float(theirs.abs().max()), 1e-6)
            torch.testing.assert_close(ours / scale, theirs / scale, atol=5e-3, rtol=0)


# The tiny models' 32 inputs are half a block of 4-bit weights.
@pytest.mark.filterwarnings("ignore:inner dimension")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8", "nf4", "nf4:single"])
def test_other_precisions_come_near(
    precision: str,
    base: Base,
    architecture: str,
    make_base: Callable[..., Base],
    adapters: dict[str, Adapter],
    make_rows: Rows,
) -> None:
    rows = [row for name in [None, *adapters] for row in make_rows(name, shared=5)]
    quantized = precision.startswith(("int8", "nf4"))
    there = held(base, f"{precision}:fp32" if quantized else "fp32", "cpu")
    expected, _ = losses_and_gradients(there, adapters, rows)
    losses, gradients = losses_and_gradients(
        held(make_base(architecture), precision), moved(adapters), rows
    )
    assert float((losses - expected).abs().mean()) < 0.15
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def write_rows(folder: Path, name: str, count: int = 12) -> Path:
    file = folder / f"{name}.jsonl"
    rows = [
        {"input": f"where is {name} {i}", "output": f"on its way {i % 3}"} for i in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def trained(base: Base, folder: Path, workspace: str) -> dict[str, Any]:
    jobs = [
        Job(task, write_rows(folder, task), method, "Say.", set={"epochs": 4, "warmup": 1, **own})
        for task, (method, own) in JOBS.items()
    ]
    stored = onebase.train(jobs, base=base, workspace=Workspace(folder / workspace))
    return {item.task: item for item in stored}


def test_training_and_answering_equal_the_cpus(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    here, there = make_base(), held(make_base(), "fp32")
    before = trained(here, tmp_path, "cpu")
    after = trained(there, tmp_path, "gpu")
    for task, item in before.items():
        expected = item.record["metrics"]["eval_loss"]
        assert after[task].record["metrics"]["eval_loss"] == pytest.approx(expected, abs=1e-3)
    requests = [(task, f"where is {i}") for i, task in enumerate([*JOBS, "base"] * 3)]
    answers = [
        Engine(base, stored.values()).generate(requests)
        for base, stored in ((here, before), (there, before))
    ]
    for ours, theirs in zip(*answers, strict=True):
        assert ours.text == theirs.text or ours.margin < 1e-3


def test_a_whole_model_learns_in_mixed_precision(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    job = Job("all", write_rows(tmp_path, "all"), "full", "Say.", set={"epochs": 2})
    (stored,) = onebase.train(
        [job], base=held(make_base(), "bf16"), workspace=Workspace(tmp_path / "w")
    )
    metrics = stored.record["metrics"]
    assert metrics["eval_loss"] < metrics["base_eval_loss"]


def test_plan_measures_the_gpu(tmp_path: Path, tiny_folder: Path) -> None:
    jobs = [
        Job(task, write_rows(tmp_path, task), method, "Say.", set=own)
        for task, (method, own) in JOBS.items()
    ]
    planned = plan(jobs, base=str(tiny_folder), workspace=Workspace(tmp_path / "w"))
    assert planned.verdict == "fits"
    assert 0 < planned.memory_bytes < 1 << 30
    assert planned.seconds is not None
