"""The prefix on chosen layers: its initial values, its file, and invalid settings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.errors import CorruptFileError, OnebaseError, UsageError
from onebase.model.base import Base


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


@pytest.fixture
def base(make_base: Callable[..., Base]) -> Base:
    return make_base()


def build(base: Base, method: str = "p-tuning-v2", **settings: Any) -> Adapter:
    return build_adapter(base, method, settings, init_text="hello, how are you?", seed=3)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("init", ["text", "vocab"])
@pytest.mark.parametrize(
    ("layers", "chosen"), [("top:1", [2]), ("bottom:2", [0, 1]), ("0,2", [0, 2])]
)
def test_it_starts_as_the_text_in_its_layers(
    layers: str, chosen: list[int], init: str, projection: bool, base: Base
) -> None:
    settings: dict[str, Any] = {"virtual_tokens": 5, "init": init, "projection": projection}
    some = build(base, layers=layers, **settings).contribution()
    every = build(base, **settings).contribution()
    assert (every.masked_prefix, some.prefix_tokens) == ((), 5)
    assert some.masked_prefix == tuple(0 if layer in chosen else 5 for layer in range(3))
    assert some.prefix is not None
    assert every.prefix is not None
    for own, whole in zip(some.prefix, every.prefix, strict=True):
        assert own.shape == (3, 2, 5, 8)
        assert torch.equal(own[chosen], whole[chosen])
        assert not own[[layer for layer in range(3) if layer not in chosen]].any()


def test_it_learns_nothing_for_other_layers(base: Base) -> None:
    adapter = build(base, virtual_tokens=5, layers="0,2", init="random")
    assert adapter.trainable() == 5 * 2 * 2 * 2 * 8
    assert adapter.options["layers"] == "0,2"
    assert adapter.prefix is not None
    assert adapter.prefix().shape == (5, 2 * 2 * 2 * 8)
    projected = build(base, virtual_tokens=5, layers="1", projection=True, hidden=6).prefix
    assert projected is not None
    assert isinstance(projected.transform, nn.Sequential)
    assert projected().shape == (5, 1 * 2 * 2 * 8)


@pytest.mark.parametrize(
    "layers", ["top:4", "bottom:0", "3", "2-1", "", "some", "top:", "-1", "1,"]
)
def test_layers_that_are_not_there(layers: str, base: Base) -> None:
    """Refused as LoRA's are."""
    caught = []
    for method in ("p-tuning-v2", "lora"):
        with pytest.raises(UsageError, match=r"is not valid .*which has 3") as error:
            build(base, method, layers=layers)
        caught.append((error.value.message, error.value.remedy))
    assert caught[0] == caught[1]


def test_a_setting_for_all_reaches_it_too(base: Base) -> None:
    adapter = build(base, "lora+p-tuning-v2", layers="top:1")
    assert {adapter.options[name]["layers"] for name in ("lora", "p-tuning-v2")} == {"top:1"}
    assert adapter.contribution().masked_prefix == (20, 20, 0)
    assert (
        build(base, "lora+p-tuning-v2", **{"lora.layers": "1"}).contribution().masked_prefix == ()
    )


@pytest.mark.parametrize("method", ["p-tuning-v2", "ia3+p-tuning-v2"])
@pytest.mark.parametrize("projection", [False, True])
def test_saved_and_read(
    projection: bool,
    method: str,
    tmp_path: Path,
    base: Base,
    plain_model: Callable[..., nn.Module],
) -> None:
    settings = {"p-tuning-v2.layers": "0,2", "virtual_tokens": 4, "projection": projection}
    adapter = build(base, method, **settings)
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        parameter.data += torch.randn_like(parameter)
    save_adapter(adapter, tmp_path, base)
    read = load_adapter(tmp_path, base)
    assert read.method == method
    options = read.options if method == "p-tuning-v2" else read.options["p-tuning-v2"]
    assert options == {"virtual_tokens": 4, "layers": "0,2"}
    ours, theirs = adapter.contribution(), read.contribution()
    assert ours.masked_prefix == theirs.masked_prefix == (0, 4, 0)
    assert ours.prefix is not None
    assert theirs.prefix is not None
    assert all(torch.equal(a, b) for a, b in zip(ours.prefix, theirs.prefix, strict=True))
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "ONEBASE"
    assert config["parts"]["p-tuning-v2"]["num_layers"] == 3
    with pytest.raises(KeyError, match="ONEBASE"):  # refused, not misread
        peft.PeftModel.from_pretrained(plain_model("llama"), str(tmp_path))


@pytest.mark.parametrize("layers", ["0-2", "top:3", "bottom:3"])
def test_all_layers_named_are_all_layers(layers: str, tmp_path: Path, base: Base) -> None:
    """The same adapter in the same files as without the option: PEFT's."""
    for name, settings in (("named", {"layers": layers}), ("all", {})):
        (tmp_path / name).mkdir()
        adapter = build(base, virtual_tokens=4, **settings)
        assert adapter.contribution().masked_prefix == ()
        save_adapter(adapter, tmp_path / name, base)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "named" / file).read_bytes() == (tmp_path / "all" / file).read_bytes()
    config = json.loads((tmp_path / "all/adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], "layers" in config) == ("PREFIX_TUNING", False)


@pytest.mark.parametrize(
    "layers", [[], [3], [2, 0], [0, 0], ["0"], "0,2", 1, {}, [-1, 2], [0, 1], [1], [0.5, 2], "gone"]
)
def test_wrong_layers_in_the_file_are_named(layers: object, tmp_path: Path, base: Base) -> None:
    """[1] and none at all are not what the weights are of; another pair can't be told from it."""
    save_adapter(build(base, virtual_tokens=4, layers="0,2"), tmp_path, base)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    part = config["parts"]["p-tuning-v2"]
    if layers == "gone":
        del part["layers"]
    else:
        part["layers"] = layers
    file.write_text(json.dumps(config), encoding="utf-8")
    if layers == [0, 1]:
        assert load_adapter(tmp_path, base).contribution().masked_prefix == (0, 0, 4)
        return
    named = r"adapter_model" if layers in ([1], "gone") else r"adapter_config\.json.*layers"
    with pytest.raises(CorruptFileError, match=named):
        load_adapter(tmp_path, base)


def test_layers_are_no_field_of_another_method(tmp_path: Path, base: Base) -> None:
    save_adapter(build(base, "prompt-tuning"), tmp_path, base)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "layers": [0]}), encoding="utf-8")
    with pytest.raises(OnebaseError, match=r"layers=\[0\]"):
        load_adapter(tmp_path, base)
