"""The compiled prefix beside an adapter: used when it fits, made anew when it doesn't."""

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor

import onebase.engine.generic_runner as module
from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.prompt_kv import prompt_kv_file, with_prompt_kv
from onebase.model.base import Base

VIRTUAL = ["prompt-tuning", "p-tuning"]


class Runs:
    """Counts the passes through the base."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        through = module.node_kv

        def counted(*arguments: object) -> tuple[Tensor, Tensor]:
            self.count += 1
            return through(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "node_kv", counted)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def fresh(base: Base, method: str = "prompt-tuning", seed: int = 0) -> Adapter:
    settings = {"virtual_tokens": 5, "init": "random"}
    return build_adapter(base, method, settings, init_text="hello", seed=seed)


def prefix_of(base: Base, adapter: Adapter, folder: Path | None) -> tuple[Tensor, Tensor]:
    contribution = with_prompt_kv(GenericRunner(base), adapter, folder)
    assert contribution.virtual is None
    assert contribution.prefix is not None
    return contribution.prefix


@pytest.mark.parametrize("method", VIRTUAL)
def test_the_prefix_is_kept_and_read_back_bit_for_bit(
    method: str, architecture: str, tmp_path: Path, make_base: Callable[..., Base], runs: Runs
) -> None:
    base = make_base(architecture)
    adapter = fresh(base, method)
    save_adapter(adapter, tmp_path, base)
    made = prefix_of(base, adapter, tmp_path)
    assert runs.count == 1
    read = prefix_of(base, load_adapter(tmp_path, base), tmp_path)
    assert runs.count == 1
    assert all(torch.equal(a, b) for a, b in zip(made, read, strict=True))
    assert [file.name for file in tmp_path.glob("*.partial")] == []


@pytest.mark.parametrize("damage", ["other weights", "other base", "flipped", "short", "no file"])
def test_a_prefix_that_does_not_fit_is_made_anew(
    damage: str, tmp_path: Path, make_base: Callable[..., Base], runs: Runs
) -> None:
    base, adapter = make_base(), fresh(make_base())
    save_adapter(adapter, tmp_path, base)
    with_prompt_kv(GenericRunner(base), adapter, tmp_path)
    file = tmp_path / prompt_kv_file(GenericRunner(base).kernel)
    content = file.read_bytes()
    if damage == "other weights":
        adapter = fresh(base, seed=1)
        save_adapter(adapter, tmp_path, base)
    elif damage == "other base":
        base = make_base(seed=1)
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "short":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    expected = prefix_of(base, adapter, None)
    before = runs.count
    got = prefix_of(base, load_adapter(tmp_path, base), tmp_path)
    assert runs.count == before + 1
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    prefix_of(base, load_adapter(tmp_path, base), tmp_path)
    assert runs.count == before + 1, "what was made anew is kept"


def test_a_folder_that_cant_hold_it_still_loads(
    tmp_path: Path, make_base: Callable[..., Base], runs: Runs
) -> None:
    base = make_base()
    adapter = fresh(base)
    save_adapter(adapter, tmp_path, base)
    (tmp_path / prompt_kv_file(GenericRunner(base).kernel)).mkdir()
    for count in (1, 2):
        assert prefix_of(base, adapter, tmp_path)[0].shape[2] == 5
        assert runs.count == count
    assert [file.name for file in tmp_path.glob(".*")] == []


def test_peft_takes_no_notice_of_it(tmp_path: Path, make_base: Callable[..., Base]) -> None:
    base = make_base()
    adapter = fresh(base)
    save_adapter(adapter, tmp_path, base)
    with_prompt_kv(GenericRunner(base), adapter, tmp_path)
    model = make_base().model
    theirs = peft.PeftModel.from_pretrained(model, str(tmp_path))
    assert adapter.prompt is not None
    torch.testing.assert_close(theirs.get_prompt(1)[0], adapter.prompt().detach())


class Halved:
    """A kernel with other numbers."""

    kernel = "half / 8-bit"

    def __init__(self, base: Base) -> None:
        self.base = base

    def check(self, contribution: Contribution) -> None:
        """It applies everything."""

    def compute_prompt_kv(self, contribution: Contribution) -> tuple[Tensor, Tensor]:
        keys, values = GenericRunner(self.base).compute_prompt_kv(contribution)
        return keys / 2, values / 2


def test_each_kernel_keeps_its_own(
    tmp_path: Path, make_base: Callable[..., Base], runs: Runs
) -> None:
    base = make_base()
    adapter = fresh(base)
    save_adapter(adapter, tmp_path, base)
    for _ in range(2):
        whole, half = (
            with_prompt_kv(one(base), adapter, tmp_path) for one in (GenericRunner, Halved)
        )
        assert whole.prefix is not None
        assert half.prefix is not None
        assert torch.equal(whole.prefix[0] / 2, half.prefix[0])
        assert runs.count == 2, "the second time both are read"
    files = sorted(file.name for file in tmp_path.glob("compiled*"))
    assert files == [
        "compiled-half-8-bit.safetensors",
        "compiled-transformers-fp32-cpu.safetensors",
    ]
