"""Every field of a GGUF file's family is read, or the file is refused with the field's name."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray
from tests.export.conftest import FAMILIES, TOKENS, tiny_tokenizer, written

from onebase.errors import CorruptFileError
from onebase.model.base import Base
from onebase.model.gguf_rope import UnreadField, rope_scaling

pytestmark = pytest.mark.usefixtures("cache")
SIZES: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def family_base(family: str, **changes: Any) -> Base:
    model, config, own, tokenizer = FAMILIES[family]
    torch.manual_seed(0)
    made = model(config(**(SIZES | own | changes)))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Base(made.eval(), tiny_tokenizer(tokenizer), name=f"tiny-{family}")


def changed(
    source: Path,
    target: Path,
    fields: Mapping[str, Any],
    *,
    tensors: Mapping[str, NDArray[numpy.float32]] | None = None,
    without: Sequence[str] = (),
) -> Path:
    """A copy of a GGUF with other fields (None: left out) and tensors."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(reader.get_field("general.architecture").contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in fields:
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type)
    for name, value in fields.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_string(name, value)
    for name, extra in (tensors or {}).items():
        writer.add_tensor(name, extra)
    for tensor in reader.tensors:
        if tensor.name not in without:
            assert tensor.tensor_type == GGMLQuantizationType.F32
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture
def plain(tmp_path: Path) -> Callable[[str], Path]:
    """The GGUF of a family's tiny model without any scaling."""

    def write(family: str) -> Path:
        file = tmp_path / f"plain-{family}.gguf"
        written(family_base(family), file)
        return file

    return write


def assert_same_logits(read: Base, expected: Base) -> None:
    tokens = TOKENS.repeat(1, 6)  # long enough for a slow frequency to show
    with torch.no_grad():
        torch.testing.assert_close(
            read.model(tokens).logits, expected.model(tokens).logits, atol=1e-4, rtol=0
        )


YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("family", "fields", "rope"),
    [
        (
            "llama",
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        ),
        (
            "llama",
            {"rope.scale_linear": 2.0},
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        ),
        (
            "qwen2",
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
            },
            YARN,
        ),
        (
            "qwen3",
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
                "rope.scaling.yarn_beta_fast": 16.0,
                "rope.scaling.yarn_beta_slow": 2.0,
                "rope.scaling.attn_factor": 0.5,
            },
            {
                **YARN,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": 0.5 * (0.1 * math.log(4.0) + 1),
            },
        ),
        ("qwen2", {"rope.freq_base": 5e3}, {"rope_type": "default", "rope_theta": 5e3}),
        (
            "gemma3",
            {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base_swa": 5e3},
            {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        ),
    ],
)
def test_the_scaling_of_the_rotary_embedding_is_kept(
    family: str,
    fields: dict[str, Any],
    rope: dict[str, Any],
    plain: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    prefix = FAMILIES[family][1]().model_type.removesuffix("_text")
    named = {f"{prefix}.{name}": value for name, value in fields.items()}
    read = Base.load(str(changed(plain(family), tmp_path / "scaled.gguf", named)))
    assert_same_logits(read, family_base(family, rope_parameters=rope))


@pytest.mark.parametrize(
    ("factor", "high", "original", "theta", "size"),
    [
        (8.0, 4.0, 8192, 5e5, 64),
        (32.0, 4.0, 8192, 5e5, 32),
        (8.0, 4.0, 64, 1e4, 4),
        (4.0, 8.0, 256, 1e4, 16),
    ],
)
def test_llama_3_s_divisors_become_its_four_numbers(
    factor: float, high: float, original: int, theta: float, size: int
) -> None:
    turns = 2 * math.pi * theta ** (numpy.arange(size) / size)
    smooth = numpy.clip((original / turns - 1) / (high - 1), 0, 1)
    divisors = (1 / ((1 - smooth) / factor + smooth)).astype(numpy.float32)
    found = rope_scaling({}, {"rope_freqs.weight": divisors}, theta=theta, context=1 << 17)
    assert found["rope_type"] == "llama3"
    assert found["factor"] == pytest.approx(factor)
    if size > 4:
        assert found["original_max_position_embeddings"] == original
        assert found["high_freq_factor"] == high


def test_divisors_that_are_not_llama_3_s_are_refused() -> None:
    strange = numpy.array([1, 3, 2, 8, 8, 1], dtype=numpy.float32)
    with pytest.raises(UnreadField, match=r"rope_freqs\.weight"):
        rope_scaling({}, {"rope_freqs.weight": strange}, theta=1e4, context=512)


def test_divisors_of_one_change_nothing() -> None:
    ones = numpy.ones(8, dtype=numpy.float32)
    assert rope_scaling({}, {"rope_freqs.weight": ones}, theta=1e4, context=512) == {}


def test_phi_3_s_divisors_are_longrope() -> None:
    short, long = numpy.full(4, 1.0, numpy.float32), numpy.full(4, 2.0, numpy.float32)
    fields = {"rope.scaling.original_context_length": 128, "rope.scaling.attn_factor": 1.25}
    divisors = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    found = rope_scaling(fields, divisors, theta=1e4, context=512)
    assert found["rope_type"] == "longrope"
    assert found["long_factor"] == [2.0] * 4
    assert (found["factor"], found["attention_factor"]) == (4.0, 1.25)


@pytest.mark.parametrize(
    ("family", "fields", "name"),
    [
        ("llama", {"llama.attention.sliding_window": 64}, "llama.attention.sliding_window"),
        ("llama", {"llama.final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("llama", {"llama.attention.scale": 0.5}, "llama.attention.scale"),
        ("llama", {"llama.expert_count": 8}, "llama.expert_count"),
        ("llama", {"llama.attention.value_length": 4}, "llama.attention.value_length"),
        ("llama", {"llama.rope.dimension_count": 4}, "llama.rope.dimension_count"),
        ("llama", {"llama.rope.scaling.attn_factor": 0.5}, "rope.scaling.attn_factor"),
        ("llama", {"llama.something.new": "x"}, "llama.something.new"),
        ("qwen3", {"qwen3.rope.scaling.type": "longrope"}, "rope.scaling.type"),
        (
            "qwen2",
            {
                "qwen2.rope.scaling.type": "yarn",
                "qwen2.rope.scaling.factor": 4.0,
                "qwen2.rope.scaling.yarn_ext_factor": 0.5,
            },
            "rope.scaling.yarn_ext_factor",
        ),
        ("qwen2", {"qwen2.rope.freq_base_swa": 1e3}, "qwen2.rope.freq_base_swa"),
        ("llama", {"general.type": "adapter"}, "general.type"),
        ("llama", {"split.count": 2}, "split.count"),
    ],
)
def test_a_field_that_is_not_read_refuses_the_file(
    family: str,
    fields: dict[str, Any],
    name: str,
    plain: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(CorruptFileError, match="can't read from GGUF") as caught:
        Base.load(str(changed(plain(family), tmp_path / "other.gguf", fields)))
    assert name in caught.value.message
    assert "Hugging Face folder" in caught.value.remedy


def test_a_tensor_that_is_not_read_refuses_the_file(
    plain: Callable[[str], Path], tmp_path: Path
) -> None:
    extra = {"blk.0.attn_sinks.weight": numpy.zeros(4, numpy.float32)}
    with pytest.raises(CorruptFileError, match=r"blk\.0\.attn_sinks\.weight"):
        Base.load(str(changed(plain("llama"), tmp_path / "other.gguf", {}, tensors=extra)))


@pytest.mark.parametrize(
    "fields",
    [
        {"llama.attention.causal": True},
        {"llama.expert_count": 0, "llama.rope.scaling.finetuned": False},
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        {"llama.attention.sliding_window": 4096},  # wider than the context
        {"llama.attention.scale": 8**-0.5},
    ],
)
def test_fields_without_effect_are_taken(
    fields: dict[str, Any], plain: Callable[[str], Path], tmp_path: Path
) -> None:
    read = Base.load(str(changed(plain("llama"), tmp_path / "same.gguf", fields)))
    assert_same_logits(read, family_base("llama"))


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        (2, ["sliding_attention", "full_attention"] * 3),
        ([True, False, False, True, True, False], ["s", "f", "f", "s", "s", "f"]),
        (None, ["sliding_attention"] * 5 + ["full_attention"]),
    ],
)
def test_the_pattern_of_windows_is_kept(
    pattern: int | list[bool] | None,
    layers: list[str],
    plain: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    long = {"s": "sliding_attention", "f": "full_attention"}
    fields = {"gemma3.attention.sliding_window_pattern": pattern}
    read = Base.load(str(changed(plain("gemma3"), tmp_path / "windows.gguf", fields)))
    expected = [long.get(layer, layer) for layer in layers]
    assert read.model.config.layer_types == expected
    assert_same_logits(read, family_base("gemma3", layer_types=expected))


@pytest.mark.parametrize(
    ("named", "ends"),
    [
        ({"eot": 7}, {2, 7}),
        ({"eot": 7, "eom": 8}, {2, 7, 8}),
        ({"eot": 2}, {2}),
        ({"eot": 4294967295}, {2}),  # none, as llama.cpp writes it
    ],
)
def test_the_ends_of_turns_are_read(
    named: dict[str, int], ends: set[int], plain: Callable[[str], Path], tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"tokenizer.ggml.eot_token_id": None}
    fields |= {f"tokenizer.ggml.{end}_token_id": token for end, token in named.items()}
    read = Base.load(str(changed(plain("llama"), tmp_path / "ends.gguf", fields)))
    found = read.model.generation_config.eos_token_id
    assert (set(found) if isinstance(found, list) else {found}) == ends
