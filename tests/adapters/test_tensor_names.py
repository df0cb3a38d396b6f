"""Tensors under other names: PEFT itself decides which of them have an effect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.adapter_folder import AdapterFolder
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.errors import CorruptFileError
from onebase.model.base import Base

IDS = [5, 17, 33, 120, 9, 4, 77, 250, 31, 8, 6, 99]
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 2}),
    "dora": ("lora", {"rank": 2, "use_dora": True}),
    "ia3": ("ia3", {}),
}
Rename = Callable[[str], str]
READ: dict[str, tuple[str, Rename]] = {
    "lora": ("lora", lambda key: key.replace(".weight", ".default.weight")),
    "half of them": (
        "lora",
        lambda key: key.replace(".weight", ".default.weight") if "lora_A" in key else key,
    ),
    "dora": (
        "dora",
        lambda key: key.replace(".weight", ".default.weight").replace(
            "magnitude_vector", "magnitude_vector.default.weight"
        ),
    ),
    "a magnitude's weight": (
        "dora",
        lambda key: key.replace("magnitude_vector", "magnitude_vector.weight"),
    ),
    "ia3": ("ia3", lambda key: f"{key}.default"),
}
PASSED_OVER: dict[str, tuple[str, Rename]] = {
    "no prefix": ("lora", lambda key: key.removeprefix("base_model.model.")),
    "half a prefix": ("lora", lambda key: key.removeprefix("base_model.")),
    "a double prefix": ("lora", lambda key: f"base_model.model.{key}"),
    "an image model's prefix": (
        "lora",
        lambda key: key.replace("model.model.model.", "model.model.language_model."),
    ),
    "another adapter's name": ("lora", lambda key: key.replace(".weight", ".mine.weight")),
    "lower case": ("lora", lambda key: key.replace("lora_A", "lora_a").replace("lora_B", "lora_b")),
    "another layer's list": ("lora", lambda key: key.replace("model.model.layers", "model.h")),
    "ia3 without a prefix": ("ia3", lambda key: key.removeprefix("base_model.model.")),
    "ia3 of another adapter": ("ia3", lambda key: f"{key}.mine"),
}
LAYER = "layers.0.mlp.down_proj"
A, RENAMED = f"{LAYER}.lora_A.weight", f" instead of base_model.model.model.{LAYER}"
WORDS = {
    "no prefix": f"it has model.{A}{RENAMED}.lora_A.weight;",
    "half a prefix": f"it has model.model.{A}{RENAMED}.lora_A.weight;",
    "a double prefix": f"it has base_model.model.base_model.model.model.{A}{RENAMED}.lora_A.weight;",
    "an image model's prefix": f"it has base_model.model.language_model.{A}{RENAMED}.lora_A.weight;",
    "another adapter's name": "….lora_A.weight is missing; it has 42 other tensors",
    "lower case": "….lora_A.weight is missing; it has 42 other tensors",
    "another layer's list": "it has base_model.model.h.0.mlp.down_proj.lora_A.weight, but the base",
    "ia3 without a prefix": f"it has model.{LAYER}.ia3_l{RENAMED}.ia3_l;",
    "ia3 of another adapter": "….ia3_l is missing; it has 9 other tensors",
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:Found missing adapter keys", "ignore:Unexpected keys"
)


@pytest.fixture
def renamed(make_base: Callable[..., Base], tmp_path: Path) -> Callable[[str, Rename], Path]:
    """An adapter whose tensors have other names."""

    def save(kind: str, rename: Rename) -> Path:
        base = make_base()
        method, settings = SETTINGS[kind]
        adapter = build_adapter(base, method, settings, init_text="hello", seed=0)
        torch.manual_seed(3)
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        save_adapter(adapter, tmp_path, base)
        file = tmp_path / "adapter_model.safetensors"
        save_file({rename(key): tensor for key, tensor in load_file(file).items()}, file)
        return tmp_path

    return save


def ours(base: Base, adapter: Adapter) -> Tensor:
    pack = Pack({"x": adapter.contribution()})
    node = pack.nodes[pack.add("x", IDS)]
    with torch.no_grad():
        return run_pack(base, pack, torch.arange(node.start, node.start + node.length))


def theirs(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=torch.tensor([IDS])).logits[0]
    return logits


@pytest.mark.parametrize("name", READ)
def test_names_that_peft_reads_are_read(
    name: str,
    renamed: Callable[[str, Rename], Path],
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    folder, base = renamed(*READ[name]), make_base()
    expected = theirs(peft.PeftModel.from_pretrained(plain_model("llama"), str(folder)))
    assert float((expected - theirs(plain_model("llama"))).abs().max()) > 0.1
    found = ours(base, load_adapter(folder, base).eval())
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", PASSED_OVER)
def test_names_that_peft_passes_over_are_refused(
    name: str,
    renamed: Callable[[str, Rename], Path],
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    kind, rename = PASSED_OVER[name]
    folder, base = renamed(kind, rename), make_base()
    without = theirs(plain_model("llama"))
    model = peft.PeftModel.from_pretrained(plain_model("llama"), str(folder))
    torch.testing.assert_close(theirs(model), without, atol=1e-6, rtol=0)
    with pytest.raises(CorruptFileError) as caught:
        load_adapter(AdapterFolder(folder, foreign=True), base)
    assert WORDS[name] in caught.value.message


@pytest.mark.parametrize("name", ["no prefix", "a double prefix", "an image model's prefix"])
def test_a_renamed_tensor_is_shown_beside_the_name_expected(
    name: str, renamed: Callable[[str, Rename], Path], make_base: Callable[..., Base]
) -> None:
    kind, rename = PASSED_OVER[name]
    with pytest.raises(CorruptFileError) as caught:
        load_adapter(AdapterFolder(renamed(kind, rename), foreign=True), make_base())
    expected = "base_model.model.model.layers."
    assert expected in caught.value.message
    assert "save_pretrained" in caught.value.remedy
    assert "roll back" not in caught.value.remedy


def test_one_tensor_under_two_names_is_refused(
    renamed: Callable[[str, Rename], Path], make_base: Callable[..., Base]
) -> None:
    folder = renamed("lora", str)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = min(tensors)
    save_file({**tensors, key.replace(".weight", ".default.weight"): tensors[key].clone()}, file)
    with pytest.raises(CorruptFileError, match="twice"):
        load_adapter(folder, make_base())
