"""A base in w8a8: the rounded weights, their cache file, and damaged cache files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onebase.adapters.methods import build_adapter
from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.model.int8_weights import Int8Embedding, Int8Linear
from onebase.model.precision import choose
from onebase.model.w8a8 import folder, identity


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path))


def quantized(base: Base) -> Base:
    base.hold_in(choose("w8a8", device="cpu", stored=torch.float32), "cpu")
    return base


def weights(base: Base) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in base.model.state_dict().items()}


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3"])
def test_every_weight_is_rounded_to_half_a_step(
    architecture: str, make_base: Callable[..., Base]
) -> None:
    plain, own = make_base(architecture), quantized(make_base(architecture))
    assert own.fingerprint == plain.fingerprint
    for name in own.shape.linears:
        linear = own.model.get_submodule(name)
        assert isinstance(linear, Int8Linear)
        assert_rounded(linear.restored(), plain.model.get_submodule(name).weight)
    embedding, head = own.model.get_input_embeddings(), own.model.get_output_embeddings()
    assert isinstance(embedding, Int8Embedding)
    assert isinstance(head, Int8Linear)
    ids = torch.arange(plain.shape.vocabulary)
    assert_rounded(embedding(ids), plain.embedding(ids))
    assert_rounded(head.restored(), plain.model.get_output_embeddings().weight)


def assert_rounded(found: torch.Tensor, rows: torch.Tensor) -> None:
    """Each row in 255 steps, by its largest number."""
    steps = rows.abs().amax(1, keepdim=True) / 127
    assert ((found - rows).abs() <= steps / 2 + 1e-6).all()
    whole = found / steps
    assert ((whole - whole.round()).abs() < 1e-3).all()


def test_the_rounded_weights_are_read_back_bit_for_bit(make_base: Callable[..., Base]) -> None:
    first = weights(quantized(make_base()))
    (file,) = folder().glob("*.safetensors")
    before = file.stat().st_mtime_ns
    second = weights(quantized(make_base()))
    assert file.stat().st_mtime_ns == before
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("damage", [b"", b"no such file of weights"])
def test_a_damaged_file_is_made_anew(make_base: Callable[..., Base], damage: bytes) -> None:
    first = weights(quantized(make_base()))
    (file,) = folder().glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(damage)
    second = weights(quantized(make_base()))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert file.read_bytes() == content


def test_one_changed_linear_layer_makes_another_base(make_base: Callable[..., Base]) -> None:
    base = make_base()
    names = list(base.shape.linears)
    before = identity(base.model, names)
    with torch.no_grad():
        base.model.get_submodule(names[3]).weight.mul_(1.01)
    assert base.fingerprint == make_base().fingerprint  # it reads norms and the embedding alone
    assert identity(base.model, names) != before


def test_a_base_in_w8a8_does_not_learn(make_base: Callable[..., Base]) -> None:
    with pytest.raises(UsageError, match="w8a8"):
        build_adapter(quantized(make_base()), "lora", {}, init_text="hi", seed=0)


def test_w8a8_is_for_a_cpu() -> None:
    with pytest.raises(UsageError, match="CPU"):
        choose("w8a8", device="cuda", stored=torch.bfloat16)
