"""Precisions of a base: what they change, what they leave, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onebase.errors import UsageError
from onebase.model.base import Base
from onebase.model.int8_weights import Int8Linear
from onebase.model.precision import PRECISIONS, choose, hold, of_type, weight_of

IDS = torch.tensor([[5, 17, 33, 120, 9, 4, 77]])
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_base_in_every_precision(precision: str, tiny_folder: Path) -> None:
    whole = Base.load(str(tiny_folder), precision="fp32")
    base = Base.load(str(tiny_folder), precision=precision)
    assert base.precision.name == precision
    assert base.fingerprint == whole.fingerprint
    assert base.shape == whole.shape
    quantized = precision in ("int8", "nf4", "w8a8")
    kind = TYPES.get(precision, torch.float32)
    assert base.embedding.weight.dtype == (torch.int8 if precision == "w8a8" else kind)
    assert {b.dtype for n, b in base.model.named_parameters() if "norm" in n} == {kind}
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    sizes = [
        sum(
            base.model.get_submodule(name).weight.numel()
            * base.model.get_submodule(name).weight.element_size()
            for name in base.shape.linears
        )
        for base in (base, whole)
    ]
    share = {"fp32": 1.0, "bf16": 0.5, "fp16": 0.5, "int8": 0.25, "w8a8": 0.25, "nf4": 0.125}[
        precision
    ]
    assert sizes[0] == share * sizes[1]
    with torch.no_grad():
        ours, theirs = base.model(IDS).logits.float(), whole.model(IDS).logits
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    limit = {"fp32": 0.0, "bf16": 0.03, "fp16": 0.005, "int8": 0.06, "w8a8": 0.08, "nf4": 2.0}[
        precision
    ]
    assert error <= limit
    assert (error > 0) == (precision != "fp32")
    if quantized:
        torch.testing.assert_close(ours, logits_of_restored(base, whole), atol=2e-5, rtol=0)
    whole = Base.load(str(tiny_folder), precision="fp32")
    for name in base.shape.linears:
        layer = base.model.get_submodule(name)
        restored = weight_of(layer)
        original = whole.model.get_submodule(name).weight
        assert restored.shape == original.shape
        if quantized:
            x = torch.randn(3, layer.in_features)
            expected = nn.functional.linear(x, restored, layer.bias)
            with torch.no_grad():
                torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(restored.float(), original.to(kind).float())


def logits_of_restored(base: Base, whole: Base) -> torch.Tensor:
    """The logits of `whole` with what `base` holds of its weights."""
    layers = [*base.shape.linears, *(["lm_head"] if base.precision.name == "w8a8" else [])]
    with torch.no_grad():
        for name in layers:
            weight = weight_of(base.model.get_submodule(name))
            whole.model.get_submodule(name).weight.copy_(weight)
        ids = torch.arange(base.shape.vocabulary)
        whole.embedding.weight.copy_(base.embedding(ids))
        logits: torch.Tensor = whole.model(IDS).logits
    return logits


# The 16 values of NormalFloat, Dettmers et al. 2023, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def test_nf4_is_the_nearest_of_16_values_of_each_block() -> None:
    """Of 64 weights, by the largest of them."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(128, 6, bias=False)).requires_grad_(False)
    blocks = model[0].weight.reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(NF4)
    nearest = ((blocks / largest)[..., None] - values).abs().argmin(-1)
    expected = (values[nearest] * largest).view(6, 128)
    hold(model, ["0"], choose("nf4:single", device="cpu", stored=torch.float32), "cpu")
    torch.testing.assert_close(weight_of(model[0]), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_int8_rounds_to_the_nearest_of_255_and_passes_gradients(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4, bias=bias).requires_grad_(False)
    linear.weight[2] = 0  # a row of zeros has no scale of its own
    layer = Int8Linear.of(linear, linear.weight.data, torch.float32)
    steps = linear.weight.abs().amax(1, keepdim=True) / 127
    assert bool(((layer.restored() - linear.weight).abs() <= steps / 2 + 1e-8).all())
    assert bool((layer.restored()[2] == 0).all())
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    layer.double()
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_int8_in_16_bits_is_as_near_as_the_16_bits_are(compute: str, tiny_folder: Path) -> None:
    whole, quantized, near = (
        Base.load(str(tiny_folder), precision=name).model(IDS).logits.float()
        for name in (compute, "int8", f"int8:{compute}")
    )
    exact = Base.load(str(tiny_folder), precision="fp32").model(IDS).logits
    rounding = (whole - exact).abs().mean() + (quantized - exact).abs().mean()
    assert float((near - exact).abs().mean()) < 1.5 * float(rounding)


def test_double_quantization_changes_nf4_little(tiny_folder: Path) -> None:
    whole = Base.load(str(tiny_folder))
    errors = []
    for double in (True, False):
        base = Base.load(str(tiny_folder), precision="nf4" if double else "nf4:single")
        assert ("single" in str(base.precision)) is not double
        errors.append(
            sum(
                float(
                    (
                        weight_of(base.model.get_submodule(name))
                        - whole.model.get_submodule(name).weight
                    ).norm()
                )
                for name in base.shape.linears
            )
        )
    assert errors[0] != errors[1]
    assert max(errors) < 1.05 * min(errors)


def test_the_compute_type_is_what_products_are_made_in(tiny_folder: Path) -> None:
    base = Base.load(str(tiny_folder), precision="nf4:bf16")
    assert base.embedding.weight.dtype == torch.bfloat16
    assert str(base.precision) == "nf4 (computes in bf16)"
    with torch.no_grad():
        assert base.model(IDS).logits.dtype == torch.bfloat16


def test_tied_weights_stay_tied(make_base: Callable[..., Base]) -> None:
    base = make_base("gemma3")
    base.model.lm_head.weight = base.embedding.weight
    base.hold_in(choose("bf16", device="cpu", stored=torch.float32), "cpu")
    assert base.model.lm_head.weight.data_ptr() == base.embedding.weight.data_ptr()


def test_the_default_goes_by_the_device() -> None:
    assert choose(None, device="cpu", stored=torch.bfloat16).name == "fp32"
    assert choose(None, device="cuda", stored=torch.bfloat16) == of_type(torch.bfloat16)
    assert choose("nf4", device="cpu", stored=torch.float32).compute == torch.float32
    assert choose("int8", device="cuda:1", stored=torch.float16).compute == torch.bfloat16


@pytest.mark.parametrize(
    "text", ["fp32", "bf16", "fp16", "int8:fp32", "int8:fp16", "nf4:bf16", "nf4:fp32:single"]
)
def test_a_precision_reads_back_as_written(text: str) -> None:
    assert choose(text, device="cpu", stored=torch.float32).text == text


@pytest.mark.parametrize(
    ("precision", "named"),
    [
        ("int4", "int4.*int8"),
        ("nf4:fp8", "fp8.*fp16"),
        ("int8:single", "single.*bf16"),
        ("bf16:fp32", "bf16 takes no options"),
        ("", "Unknown precision"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(
    precision: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        Base.load(str(tmp_path / "nothing here"), precision=precision)
    assert re.search(named, f"{caught.value.message} {caught.value.remedy}")
