"""Loading a folder as a frozen base; a damaged one raises an error instead of giving another model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onebase.errors import CorruptFileError, MissingBaseError
from onebase.model.base import Base


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


def test_a_folder_loads(folder: Path) -> None:
    base = Base.load(str(folder))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert (base.name, base.path, base.device.type) == (str(folder), folder, device)
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    shape = base.shape
    assert (shape.hidden, shape.layers, shape.heads, shape.kv_heads) == (32, 3, 4, 2)
    assert (shape.head_dim, shape.vocabulary) == (8, 300)
    assert len(shape.linears) == 3 * 7
    assert shape.linears["model.layers.2.self_attn.k_proj"] == (32, 16)
    assert shape.linears["model.layers.0.mlp.down_proj"] == (48, 32)


def test_a_base_on_a_cpu_is_float32(folder: Path) -> None:
    weights = {name: weight.bfloat16() for name, weight in weights_of(folder).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base = Base.load(str(folder), device="cpu")
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def scribble_on_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a model" * 100)


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def drop_one_weight(folder: Path) -> None:
    weights = weights_of(folder)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_one_weight(folder: Path) -> None:
    weights = weights_of(folder)
    weights["model.norm.weight"] = torch.ones(31)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def empty_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}", encoding="utf-8")


def cut_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text(encoding="utf-8")[:50], encoding="utf-8")


def contradict_in_config(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"num_attention_heads": 5}), encoding="utf-8")


def drop_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def scribble_on_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def cut_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8")[:-100], encoding="utf-8")


def contradict_in_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["merges"].append(["no such token", "nor this"])
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        cut_weights,
        scribble_on_weights,
        drop_weights,
        drop_one_weight,
        reshape_one_weight,
        empty_config,
        cut_config,
        contradict_in_config,
        drop_tokenizer,
        scribble_on_tokenizer,
        cut_tokenizer,
        contradict_in_tokenizer,
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(CorruptFileError) as caught:
        Base.load(str(folder))
    assert str(folder) in caught.value.message
    assert "config.json" in caught.value.remedy


def test_the_missing_weight_is_named(folder: Path) -> None:
    drop_one_weight(folder)
    with pytest.raises(
        CorruptFileError, match=r"1 weights are missing, such as model\.layers\.1\.mlp\.up_proj"
    ):
        Base.load(str(folder))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingBaseError, match=f"There is no base model '{tmp_path}/absent'"):
        Base.load(str(tmp_path / "absent"))


def test_equal_weights_have_equal_fingerprints(
    folder: Path, tiny_folder: Path, make_base: Callable[..., Base]
) -> None:
    first = Base.load(str(folder)).fingerprint
    assert first == Base.load(str(tiny_folder)).fingerprint
    assert len(first) == 16
    assert first != make_base(seed=1).fingerprint
