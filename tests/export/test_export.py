"""Exporting stored adapters to a folder, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from torch import Tensor

from onebase.adapters.full import save_full
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.errors import MissingBaseError, UsageError
from onebase.export import export as module
from onebase.export.export import Exported, export
from onebase.model.base import Base

MakeBase = Callable[..., Base]


@pytest.fixture
def base(make_family: MakeBase) -> Base:
    return make_family("llama")


@pytest.fixture
def kept(base: Base, make_lora: Any, keep: Callable[..., StoredAdapter]) -> StoredAdapter:
    return keep(base, make_lora(base, rank=4))


def names(exported: Exported) -> list[str]:
    assert all(file.stat().st_size for file in exported.files)
    return [file.name for file in exported.files]


@pytest.mark.usefixtures("kept")
def test_merged(
    base: Base,
    make_lora: Any,
    engine_logits: Any,
    store: AdapterStore,
    tokens: Tensor,
    tmp_path: Path,
) -> None:
    exported = export(store, "support@1", "merged", tmp_path / "out")
    assert (exported.task, exported.version, exported.notes) == ("support", 1, ())
    assert names(exported) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    with torch.no_grad():
        expected = engine_logits(base, make_lora(base, rank=4).contribution())
        logits = Base.load(str(tmp_path / "out")).model(tokens).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("kept")
def test_gguf_is_two_files(store: AdapterStore, tmp_path: Path) -> None:
    exported = export(store, "support", "gguf", tmp_path / "out")
    assert names(exported) == ["adapter.gguf", "model.gguf"]
    fields = [GGUFReader(file).fields for file in exported.files]
    assert [field["general.name"].contents() for field in fields] == ["support@1", "support@1"]
    assert fields[0]["adapter.lora.task_name"].contents() == "support@1"
    assert fields[1]["general.file_type"].contents() == 1  # f16


def test_what_llama_cpp_can_not_add_is_only_merged(
    base: Base, make_lora: Any, keep: Any, store: AdapterStore, tmp_path: Path
) -> None:
    keep(base, make_lora(base, use_dora=True))
    exported = export(store, "support", "gguf", tmp_path / "out")
    assert names(exported) == ["model.gguf"]
    (note,) = exported.notes
    assert "only the merged model" in note


def test_the_bare_base(
    base: Base, kept: StoredAdapter, store: AdapterStore, tokens: Tensor, tmp_path: Path
) -> None:
    exported = export(store, "base", "gguf", tmp_path / "gguf", base=kept.base)
    assert (exported.task, exported.version, names(exported)) == ("base", 0, ["model.gguf"])
    export(store, "base", "merged", tmp_path / "out", base=kept.base)
    with torch.no_grad():
        logits = Base.load(str(tmp_path / "out")).model(tokens).logits
        torch.testing.assert_close(logits, base.model(tokens).logits)
    with pytest.raises(UsageError, match="no adapter"):
        export(store, "base", "peft", tmp_path / "peft")


def test_full_fine_tuning_is_a_model_of_its_own(
    base: Base, store: AdapterStore, tokens: Tensor, tmp_path: Path
) -> None:
    with torch.no_grad():
        expected = base.model(tokens).logits
    record = {"method": "full", "base": "no/such", "base_fingerprint": "0"}
    store.add("support", lambda folder: save_full(base, folder), record)
    exported = export(store, "support", "gguf", tmp_path / "gguf")
    assert (names(exported), exported.notes) == (["model.gguf"], ())
    export(store, "support", "merged", tmp_path / "out")
    with torch.no_grad():
        logits = Base.load(str(tmp_path / "out")).model(tokens).logits
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning-v2"])
@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_virtual_tokens_and_prefixes_can_not_be_merged(
    method: str, to: str, base: Base, make_lora: Any, keep: Any, store: AdapterStore, tmp_path: Path
) -> None:
    keep(base, make_lora(base, method))
    with pytest.raises(UsageError, match=r"support@1 has .*, which can't be merged") as caught:
        export(store, "support", to, tmp_path / "out")
    assert "--to peft" in caught.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("name", "to", "dtype", "words"),
    [
        ("suport", "peft", None, "Did you mean 'support'? Valid: base, support."),
        ("support@3", "peft", None, "Valid: support@1."),
        ("support", "vllm", None, "Valid: gguf, merged, peft."),
        ("support", "ggfu", None, "Did you mean 'gguf'?"),
        ("support", "gguf", "fp32", "Valid: f16, f32, q8_0."),
        ("support", "merged", "f32", "Valid: bf16, fp16, fp32."),
        ("support", "peft", "fp32", "Omit it."),
    ],
)
def test_wrong_names(
    name: str, to: str, dtype: str | None, words: str, store: AdapterStore, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        export(store, name, to, tmp_path / "out", dtype=dtype)
    assert words in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_base_that_moved(kept: StoredAdapter, store: AdapterStore, tmp_path: Path) -> None:
    Path(kept.base).rename(tmp_path / "moved")
    with pytest.raises(MissingBaseError, match="which was not found") as caught:
        export(store, "support", "merged", tmp_path / "out")
    assert kept.base in caught.value.message
    assert "--base" in caught.value.remedy
    export(store, "support", "merged", tmp_path / "out", base=str(tmp_path / "moved"))
    export(store, "support", "peft", tmp_path / "peft")  # needs no base


def test_a_folder_with_files_is_refused_before_anything_is_loaded(
    kept: StoredAdapter, store: AdapterStore, tmp_path: Path
) -> None:
    Path(kept.base).rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="not empty"):
        export(store, "support", "merged", tmp_path / "moved")


def test_another_base_is_refused(
    kept: StoredAdapter, store: AdapterStore, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="was trained on") as caught:
        export(store, "support", "merged", tmp_path / "out", base=str(tiny_folder))
    assert kept.base in caught.value.message


@pytest.mark.parametrize(
    ("template", "endings"),
    [
        ({"kind": "chat", "instruction": None}, []),
        ({"kind": "chat", "instruction": "Be kind."}, ["system message: Be kind."]),
        (
            {"kind": "plain", "instruction": "Be kind."},
            ["Output:', with the instruction: Be kind."],
        ),
        ({"kind": "Q: {input} A:", "instruction": None}, ["in the format 'Q: {input} A:'"]),
    ],
)
def test_how_to_ask_is_told(
    template: dict[str, Any],
    endings: list[str],
    base: Base,
    make_lora: Any,
    keep: Any,
    store: AdapterStore,
    tmp_path: Path,
) -> None:
    keep(base, make_lora(base), template=template)
    notes = export(store, "support", "peft", tmp_path / "out").notes
    for note, ending in zip(notes, endings, strict=True):
        assert note.endswith(ending)


@pytest.mark.parametrize("precision", ["nf4:fp32", "nf4:bf16:single", "int8:fp32", "nf4"])
@pytest.mark.parametrize(("to", "dtype"), [("gguf", "q8_0"), ("merged", None), ("peft", None)])
def test_a_quantized_training_is_told(
    base: Base,
    make_lora: Any,
    keep: Any,
    store: AdapterStore,
    tmp_path: Path,
    precision: str,
    to: str,
    dtype: str | None,
) -> None:
    keep(base, make_lora(base), precision=precision)
    exported = export(store, "support", to, tmp_path / "out", dtype=dtype)
    assert f"trained on its base in {precision.partition(':')[0]}" in exported.notes[-1]


@pytest.mark.parametrize("precision", ["fp32", "bf16", None])
def test_a_training_in_floating_point_needs_no_word(
    base: Base,
    make_lora: Any,
    keep: Any,
    store: AdapterStore,
    tmp_path: Path,
    precision: str | None,
) -> None:
    keep(base, make_lora(base), precision=precision)
    assert export(store, "support", "peft", tmp_path / "out").notes == ()


@pytest.mark.usefixtures("kept")
def test_a_failure_half_way_leaves_nothing(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_model", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space"):
        export(store, "support", "gguf", tmp_path / "out")
    assert set(tmp_path.iterdir()) == before
