"""An exported adapter is in PEFT's format, and PEFT answers like the engine with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.errors import CorruptFileError, UsageError
from onebase.export.export import export
from onebase.model.base import Base

MakeBase = Callable[..., Base]
Keep = Callable[..., StoredAdapter]


@pytest.mark.parametrize("method", ["lora", "prompt-tuning", "p-tuning-v2"])
def test_peft_loads_it(
    method: str,
    make_family: MakeBase,
    make_lora: Any,
    keep: Keep,
    store: AdapterStore,
    engine_logits: Any,
    tokens: Tensor,
    tmp_path: Path,
) -> None:
    base = make_family("llama")
    adapter = make_lora(base, method)
    stored = keep(base, adapter)
    (stored.path / "compiled-transformers-fp32-cpu.safetensors").touch()
    exported = export(store, "support", "peft", tmp_path / "out")
    assert [file.name for file in exported.files] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "onebase.json",
    ]
    # The base is found by what the adapter says.
    model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model(tokens).logits[0, -tokens.shape[1] :]
        plain = make_family("llama").model(tokens).logits[0]
        expected = engine_logits(base, adapter.contribution())
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert float((logits - plain).abs().max()) > 1e-1


def base_name(out: Path) -> str:
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    return str(config["base_model_name_or_path"])


@pytest.mark.parametrize(
    ("base", "written", "expected"),
    [
        ("owner/model", "/cache/models/owner--model", "owner/model"),
        ("gone", "/not/there", "/not/there"),
        ("mine", "models/mine", "{here}/models/mine"),
    ],
)
def test_how_the_base_is_named(
    base: str,
    written: str,
    expected: str,
    store: AdapterStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/mine").mkdir(parents=True)

    def write(folder: Path) -> None:
        config = {"peft_type": "LORA", "base_model_name_or_path": written}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "adapter_model.safetensors").touch()

    store.add("support", write, {"base": base})
    export(store, "support", "peft", Path("out"))
    assert base_name(Path("out")) == expected.format(here=tmp_path.resolve())


def test_a_damaged_adapter_is_not_copied(
    make_family: MakeBase, make_lora: Any, keep: Keep, store: AdapterStore, tmp_path: Path
) -> None:
    base = make_family("llama")
    stored = keep(base, make_lora(base))
    weights = stored.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    for to in ("peft", "merged", "gguf"):
        with pytest.raises(CorruptFileError):
            export(store, "support", to, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_whole_model_is_no_adapter(store: AdapterStore, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
        (folder / "model.safetensors").touch()

    store.add("support", write, {"method": "full"})
    with pytest.raises(UsageError, match="is a whole model") as caught:
        export(store, "support", "peft", tmp_path / "out")
    assert "--to merged" in caught.value.remedy


def test_several_methods_at_once_have_no_file_of_pefts(store: AdapterStore, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        config = {"peft_type": "ONEBASE", "parts": {"lora": {}, "p-tuning": {}}}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "adapter_model.safetensors").touch()

    stored = store.add("support", write, {"method": "lora+p-tuning"})
    with pytest.raises(UsageError, match=r"lora\+p-tuning") as caught:
        export(store, "support", "peft", tmp_path / "out")
    assert str(stored.path) in caught.value.remedy


def test_a_prefix_on_some_layers_has_no_file_of_pefts(
    store: AdapterStore,
    tmp_path: Path,
    make_family: MakeBase,
    make_lora: Callable[..., Adapter],
    keep: Keep,
) -> None:
    base = make_family("llama")
    stored = keep(base, make_lora(base, "p-tuning-v2", layers="top:1"))
    with pytest.raises(UsageError, match=r"support@1 has a prefix on some layers only") as caught:
        export(store, "support", "peft", tmp_path / "out")
    assert str(stored.path) in caught.value.remedy
    assert "layers=all" in caught.value.remedy
    with pytest.raises(UsageError, match="prefix of keys") as caught:
        export(store, "support", "merged", tmp_path / "out")
    assert "--to peft" not in caught.value.remedy
    assert not (tmp_path / "out").exists()
    keep(base, make_lora(base, "lora+p-tuning-v2", layers="top:1"))
    with pytest.raises(UsageError, match=r"lora\+p-tuning-v2"):
        export(store, "support", "peft", tmp_path / "out")
