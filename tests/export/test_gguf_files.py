"""GGUF files read back: by GGUFReader, and by onebase itself as a base."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from tests.export.conftest import YARN, written
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import LowRank
from onebase.errors import OnebaseError, UsageError
from onebase.export.gguf_files import write_adapter
from onebase.export.merged import merge
from onebase.model.base import Base

MakeBase = Callable[..., Base]
MakeLora = Callable[..., Adapter]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path_factory.mktemp("cache")))


def values(file: Path) -> dict[str, numpy.ndarray[Any, Any]]:
    """Every tensor in float32, as [rows, columns]."""
    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type).copy()
        for tensor in GGUFReader(file).tensors
    }


def field(file: Path, name: str) -> Any:
    found = GGUFReader(file).get_field(name)
    return None if found is None else found.contents()


def test_the_model_reads_back(
    readable: str, make_family: MakeBase, make_lora: MakeLora, tokens: Tensor, tmp_path: Path
) -> None:
    base = make_family(readable)
    with torch.no_grad():
        merge(base, make_lora(base, rank=4).contribution())
        expected = base.model(tokens).logits
    assert written(base, tmp_path / "m.gguf", name="support@1", kind="f32") == []
    read = Base.load(str(tmp_path / "m.gguf"))
    with torch.no_grad():
        torch.testing.assert_close(read.model(tokens).logits, expected, atol=1e-4, rtol=0)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"):
        assert getattr(read.tokenizer, name) == getattr(base.tokenizer, name)


def test_the_tokens_read_back(
    readable: str, texts: tuple[str, ...], make_family: MakeBase, tmp_path: Path
) -> None:
    base = make_family(readable)
    written(base, tmp_path / "m.gguf", name="m", kind="f16")
    read = Base.load(str(tmp_path / "m.gguf")).tokenizer
    for text in texts:
        for special in (False, True):
            expected = base.tokenizer(text, add_special_tokens=special)["input_ids"]
            assert read(text, add_special_tokens=special)["input_ids"] == expected
        assert read.decode(expected) == base.tokenizer.decode(expected)


def test_base_and_adapter_are_the_merged_model(
    family: str, make_family: MakeBase, make_lora: MakeLora, tmp_path: Path
) -> None:
    """As llama.cpp joins them: W + alpha / rank * b @ a, in GGUF's order of rows."""
    base = make_family(family)
    with torch.no_grad():
        deltas = dict(make_lora(base, rank=4, alpha=6.0).contribution().deltas)
        one = next(name for name in deltas if name.endswith("q_proj"))
        other = deltas[one]  # of another rank and scale than the rest
        deltas[one] = LowRank(other.a[:3], other.b[:, :3], other.scale * 2)
        written(base, tmp_path / "base.gguf", name="base", kind="f32")
        write_adapter(deltas, base, tmp_path / "a.gguf", name="support@2")
        for name, delta in deltas.items():
            base.model.get_submodule(name).weight += delta.scale * delta.b @ delta.a
        written(base, tmp_path / "merged.gguf", name="merged", kind="f32")
    adapter = values(tmp_path / "a.gguf")
    alpha = field(tmp_path / "a.gguf", "adapter.lora.alpha")
    joined = values(tmp_path / "base.gguf")
    assert len(adapter) == 2 * len(deltas)
    for key in adapter:
        if key.endswith(".lora_a"):
            target = key.removesuffix(".lora_a")
            a, b = adapter[key], adapter[f"{target}.lora_b"]
            joined[target] += alpha / len(a) * b @ a
    merged = values(tmp_path / "merged.gguf")
    assert joined.keys() == merged.keys()
    for name, value in merged.items():
        numpy.testing.assert_allclose(joined[name], value, atol=1e-5)


def test_the_adapters_header(make_family: MakeBase, make_lora: MakeLora, tmp_path: Path) -> None:
    base, file = make_family("qwen3"), tmp_path / "a.gguf"
    with torch.no_grad():
        deltas = make_lora(base, rank=4, alpha=6.0).contribution().deltas
    write_adapter(deltas, base, file, name="support@2")
    assert field(file, "general.type") == "adapter"
    assert field(file, "general.architecture") == "qwen3"
    assert field(file, "adapter.type") == "lora"
    assert field(file, "adapter.lora.alpha") == 6.0
    assert field(file, "adapter.lora.task_name") == "support@2"
    modules = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert values(file).keys() == {
        f"blk.{layer}.{module}.weight.lora_{letter}"
        for layer in range(3)
        for module in modules
        for letter in "ab"
    }


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_types(kind: str, make_family: MakeBase, tmp_path: Path) -> None:
    base, file = make_family("gemma3"), tmp_path / "m.gguf"
    written(base, file, name="m", kind=kind)
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(file).tensors}
    wanted = GGMLQuantizationType[kind.upper()]
    vectors = {name for name in types if "norm" in name}
    assert {types[name] for name in vectors} == {GGMLQuantizationType.F32}
    assert {kind for name, kind in types.items() if name not in vectors} == {wanted}
    assert field(file, "general.file_type") == {"f32": 0, "f16": 1, "q8_0": 7}[kind]
    ours = base.model.model.embed_tokens.weight.detach().numpy()
    written_weight = values(file)["token_embd.weight"]
    if kind == "q8_0":
        # Half a step of each block of 32, and the rounding of its scale to float16.
        steps = numpy.abs(ours.reshape(-1, 32)).max(1, keepdims=True) / 127
        errors = numpy.abs(written_weight - ours).reshape(-1, 32)
        assert (errors <= steps * (0.5 + 127 / 2**11)).all()
        assert errors.any()
    else:
        kept = ours.astype(numpy.float16 if kind == "f16" else numpy.float32)
        numpy.testing.assert_array_equal(written_weight, kept)


def test_rows_that_q8_0_can_not_hold_are_f16(make_family: MakeBase, tmp_path: Path) -> None:
    base, file = make_family("llama", intermediate_size=48), tmp_path / "m.gguf"
    written(base, file, name="m", kind="q8_0")
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(file).tensors}
    assert types["blk.0.ffn_down.weight"] == GGMLQuantizationType.F16
    assert types["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q8_0


def test_values_that_f16_can_not_hold(make_family: MakeBase, tmp_path: Path) -> None:
    base = make_family("llama")
    base.model.lm_head.weight.data[3, 4] = 70000.0
    with pytest.raises(OnebaseError, match=r"output\.weight .* f16"):
        written(base, tmp_path / "m.gguf", name="m", kind="f16")


def test_llama_3s_frequencies(make_family: MakeBase, tmp_path: Path) -> None:
    written(make_family("llama3"), tmp_path / "m.gguf", name="m", kind="f32")
    factors = values(tmp_path / "m.gguf")["rope_freqs.weight"]
    # Waves of 2 pi 10^i tokens: below 64 / 4 as they are, above 64 / 1 by 8, one between.
    smooth = (64 / (20 * math.pi) - 1) / (4 - 1)
    assert factors.tolist() == pytest.approx([1, 1 / (smooth + (1 - smooth) / 8), 8, 8], rel=1e-6)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama-yarn", {"type": "yarn", "factor": 4.0, "original_context_length": 16,
                        "attn_factor": None}),
        ("qwen2-yarn", {"type": "yarn", "factor": 4.0, "attn_factor": 1.5 / (0.1 * math.log(4) + 1)}),
        ("qwen3-yarn", {"type": "yarn", "factor": 3.0, "original_context_length": 16}),
        ("llama-linear", {"type": "linear", "factor": 4.0, "original_context_length": None}),
    ],
)  # fmt: skip
def test_scaled_rotary_embeddings_are_written_and_read_back(
    family: str, fields: dict[str, Any], make_family: MakeBase, tmp_path: Path
) -> None:
    base = make_family(family)
    written(base, tmp_path / "m.gguf", name="m", kind="f32")
    name = base.model.config.model_type
    for key, value in fields.items():
        found = field(tmp_path / "m.gguf", f"{name}.rope.scaling.{key}")
        assert found == (value if value is None else pytest.approx(value))
    read = Base.load(str(tmp_path / "m.gguf"))
    for position in (5, 40, 300):  # within the context that it was trained with, and beyond
        places = torch.tensor([[position]])
        theirs = read.model.model.rotary_emb(torch.zeros(1), places)
        ours = base.model.model.rotary_emb(torch.zeros(1), places)
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_scaling_that_depends_on_the_text_is_refused(
    kind: str, length_bound_base: MakeBase, tmp_path: Path
) -> None:
    with pytest.raises(OnebaseError, match=r"phi3 model|rope_type='dynamic'"):
        written(length_bound_base(kind), tmp_path / "m.gguf", name="m", kind="f32")


def test_other_families_are_refused(make_base: MakeBase, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a glm model") as caught:
        written(make_base("glm"), tmp_path / "m.gguf", name="m", kind="f32")
    assert "gemma3_text" in caught.value.remedy


PLAIN = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         "rope_type='dynamic'"),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 16}}, "beta_fast=16"),
        ("qwen2", {"rope_parameters": {**YARN, "truncate": False}}, "truncate=False"),
        ("qwen3", {"rope_parameters": {**YARN, "mscale": 2.0, "mscale_all_dim": 1.0}},
         "mscale=2.0"),
        ("gemma3", {"rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}},
         "rope_type='yarn'"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
         "layer_types="),
        ("gemma3", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar=64"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, "layer_types="),
    ],
)  # fmt: skip
def test_settings_that_llama_cpp_lacks_are_refused(
    family: str, changes: dict[str, Any], words: str, make_family: MakeBase, tmp_path: Path
) -> None:
    with pytest.raises(OnebaseError) as caught:
        written(make_family(family, **changes), tmp_path / "m.gguf", name="m", kind="f32")
    assert words in caught.value.message
    assert "--to merged" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
