"""The base and the precision that an alignment, or a scoring, is loaded in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import onebase
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.align.base_choice import base_for_job, base_for_scores
from onebase.align.job import AlignJob
from onebase.align.start import start_from
from onebase.align.trained_on import other_precision
from onebase.engine.task_bases import BaseChoice
from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.model.fetch import DEFAULT_BASE
from onebase.model.precision import choose


def write(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Tasks of several precisions and bases, and reward models of both."""
    found = Workspace(tmp_path / "w")
    for task, base, precision, more in (
        ("four", "acme/a", "nf4:fp32", {"method": "qlora"}),
        ("eight", "acme/a", "int8:fp32", {"method": "lora"}),
        ("half", "acme/a", "bf16", {"method": "lora"}),
        ("elsewhere", "acme/b", "fp32", {"method": "lora"}),
        ("foreign", "acme/a", None, {"method": "lora"}),
        ("judge", "acme/a", "nf4:fp32", {"head": "reward"}),
        ("other-judge", "acme/b", "fp32", {"head": "reward"}),
    ):
        record = {"base": base, "base_fingerprint": base, **more}
        if precision:
            record["precision"] = precision
        AdapterStore(found).add(task, write, record)
    return found


def job(task: str, method: str | None = None, **more: Any) -> AlignJob:
    return AlignJob(task, "data.jsonl", method, **more)


@pytest.mark.parametrize(
    ("asked", "given", "expected"),
    [
        (job("four"), {}, ("acme/a", "nf4:fp32")),
        (job("eight"), {}, ("acme/a", "int8:fp32")),
        (job("half"), {}, ("acme/a", "bf16")),
        (job("elsewhere"), {}, ("acme/b", "fp32")),
        (job("foreign"), {}, ("acme/a", None)),
        (job("new", start="four@1"), {}, ("acme/a", "nf4:fp32")),
        (job("four"), {"precision": "fp32"}, ("acme/a", "fp32")),
        (job("four"), {"base": "here"}, ("here", "nf4:fp32")),
        (job("new", "lora"), {}, (DEFAULT_BASE, None)),
        (job("new", "qlora"), {}, (DEFAULT_BASE, "nf4")),
        (job("new", "qlora"), {"precision": "nf4:bf16"}, (DEFAULT_BASE, "nf4:bf16")),
        (job("new", "lora"), {"reward": "judge"}, ("acme/a", "nf4:fp32")),
        (job("new", "lora"), {"reward": "mine:f"}, (DEFAULT_BASE, None)),
        (job("eight"), {"reward": "judge"}, ("acme/a", "int8:fp32")),
        (job("foreign"), {"reward": "judge"}, ("acme/a", "nf4:fp32")),
    ],
)
def test_a_job_learns_on_what_its_adapters_were_trained_on(
    asked: AlignJob, given: dict[str, Any], expected: tuple[str, str | None], workspace: Workspace
) -> None:
    assert base_for_job(asked, workspace, **given) == BaseChoice(*expected)


@pytest.mark.parametrize(
    ("asked", "given", "text"),
    [
        (job("nothing"), {}, "'nothing' has no adapter"),
        (job("four", start="four@7"), {}, "four@7"),
        (job("judge"), {}, "judge@1 is a reward model"),
        (job("new", "qlora"), {"precision": "int8"}, "int8 was chosen"),
        (job("four"), {"reward": "eight"}, "eight@1 is not a reward model"),
        (job("four"), {"reward": "other-judge"}, "on acme/a, the reward model .* on acme/b"),
    ],
)
def test_what_does_not_go_together_is_told_before_a_base_is_loaded(
    asked: AlignJob, given: dict[str, Any], text: str, workspace: Workspace
) -> None:
    with pytest.raises(UsageError, match=text):
        base_for_job(asked, workspace, **given)


def test_a_reward_model_scores_as_it_was_trained(workspace: Workspace) -> None:
    assert base_for_scores("judge", workspace) == BaseChoice("acme/a", "nf4:fp32")
    assert base_for_scores("other-judge", workspace) == BaseChoice("acme/b", "fp32")
    chosen = base_for_scores("judge", workspace, base="here", precision="fp32")
    assert chosen == BaseChoice("here", "fp32")
    for name, text in (("four", "not a reward model"), ("mine:f", "not a task"), ("none", "none")):
        with pytest.raises(UsageError, match=text):
            base_for_scores(name, workspace)


@pytest.mark.parametrize(
    ("task", "precision", "told"),
    [
        (
            "four",
            "fp32",
            "four@1 was trained with its base in nf4:fp32, and the base is now in fp32",
        ),
        ("four", "nf4:bf16", "--precision nf4:fp32"),
        ("half", "fp32", "--precision bf16"),
        ("eight", "int8", None),
        ("foreign", "fp32", None),
    ],
)
def test_another_precision_is_told(
    task: str,
    precision: str,
    told: str | None,
    workspace: Workspace,
    make_base: Callable[..., Base],
) -> None:
    base = make_base()
    base.precision = choose(precision, device="cpu", stored=torch.float32)
    notes = other_precision(AdapterStore(workspace).get(task), base)
    assert len(notes) == (told is not None)
    assert told is None or told in notes[0]


def test_a_policy_of_qlora_stays_one_on_its_own_base(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    rows = "".join(f'{{"input": "q{at}", "output": "a"}}\n' for at in range(6))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    workspace, bases = Workspace(tmp_path / "w"), {}
    for name in ("nf4", "fp32"):
        bases[name] = make_base()
        bases[name].hold_in(choose(name, device="cpu", stored=torch.float32), "cpu")
    settings = {"rank": 2, "epochs": 1, "target": "attention"}
    task = onebase.Job("desk", tmp_path / "rows.jsonl", "qlora", set=settings)
    onebase.train([task], base=bases["nf4"], workspace=workspace)
    methods = {}
    for name, base in bases.items():
        start = start_from(job("desk"), base, workspace, max_tokens=64)
        methods[name] = start.adapter.method
        assert len(start.notes) == (name == "fp32")
    assert methods == {"nf4": "qlora", "fp32": "lora"}
