"""Checks of a foreign adapter's configuration: types, ranges, tensors, base."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from onebase.adapters.adapter_folder import AdapterFolder
from onebase.adapters.base_match import names_another_base
from onebase.adapters.importing import read_adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.errors import CorruptFileError, OnebaseError
from onebase.model.base import Base

MakeBase = Callable[..., Base]
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "target": "attention"},
    "ia3": {},
    "prompt-tuning": {"virtual_tokens": 4},
    "p-tuning-v2": {"virtual_tokens": 4},
}


@pytest.fixture
def base(make_base: MakeBase) -> Base:
    return make_base()


@pytest.fixture
def saved(base: Base, tmp_path: Path) -> Callable[..., Path]:
    """An adapter of a method in a folder, fields of its configuration changed."""

    def save(method: str = "lora", **changes: Any) -> Path:
        folder = tmp_path / "adapter"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        adapter = build_adapter(base, method, SETTINGS[method], init_text="hello", seed=0)
        save_adapter(adapter, folder, base)
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**config, **changes}), encoding="utf-8")
        return folder

    return save


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


WRONG = [
    *(("lora", "r", value) for value in (0, -1, 2.5, True, "8", None, [4], {})),
    *(("lora", "lora_alpha", value) for value in (float("inf"), float("nan"), 10**400, "16", 0)),
    *(("lora", "lora_dropout", value) for value in (-0.1, 1, float("nan"), "0.1", [])),
    *(("lora", field, "yes") for field in ("use_dora", "use_rslora", "inference_mode")),
    *(("lora", "target_modules", value) for value in ("q_proj(", [1], {"q": 1}, "(?P<a>", 3)),
    *(("lora", "exclude_modules", value) for value in ("[", [None], 5)),
    *(("lora", "rank_pattern", value) for value in ([1], {"(": 2}, {"q": 0}, {"q": "2"}, "q")),
    *(("lora", "alpha_pattern", value) for value in ({"q": 0}, {"*": 2}, {"q": None}, ["q"])),
    ("lora", "rank_pattern", {"a{99999999999}": 2}),
    ("lora", "alpha_pattern", {"q_proj": float("inf")}),
    *(("lora", "layers_to_transform", value) for value in ("1", [None], 1.5)),
    *(("lora", "layers_pattern", value) for value in ("(", ["["], [3])),
    *(("lora", "base_model_name_or_path", value) for value in (3, ["a"], {})),
    ("lora", "revision", 7),
    ("lora", "auto_mapping", "x"),
    ("lora", "loftq_config", [1]),
    *(("ia3", "target_modules", value) for value in ("(", [2])),
    *(("ia3", "feedforward_modules", value) for value in ("(", [2], 7)),
    *(("prompt-tuning", "num_virtual_tokens", value) for value in (10**12, 4.0, 4.5, "4", 5)),
    *(("prompt-tuning", "token_dim", value) for value in (64, "32", 0)),
    ("prompt-tuning", "tokenizer_kwargs", [1]),
    *(("p-tuning-v2", "num_virtual_tokens", value) for value in (10**12, 3, [4])),
    *(("p-tuning-v2", "num_layers", value) for value in (2, 4, "3")),
    *(("p-tuning-v2", "num_attention_heads", value) for value in (1, 4)),
    *(("p-tuning-v2", "token_dim", value) for value in (32, 8)),
    *(("p-tuning-v2", "layers", value) for value in ([5], [1, 0], "all", [[]], [True, 2])),
]


@pytest.mark.parametrize(("method", "field", "value"), WRONG)
def test_a_field_of_a_wrong_type_or_out_of_range_is_named(
    saved: Callable[..., Path], base: Base, method: str, field: str, value: object
) -> None:
    folder = saved(method, **{field: value})
    with pytest.raises(CorruptFileError, match=rf"adapter_config\.json.*{field}") as caught:
        load_adapter(AdapterFolder(folder, foreign=True), base)
    assert "roll back" not in caught.value.remedy
    with pytest.raises(CorruptFileError) as caught:
        load_adapter(folder, base)  # a stored one
    assert "roll back" in caught.value.remedy


@pytest.mark.parametrize("value", ["score", [["score"]], [1], {"score": 1}, ["lm_head"]])
def test_layers_saved_whole_are_refused(
    saved: Callable[..., Path], base: Base, value: object
) -> None:
    with pytest.raises(OnebaseError, match="modules_to_save"):
        load_adapter(saved(modules_to_save=value), base)


NO_TABLE = "parts is not a JSON object of methods"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, NO_TABLE),
        ([], NO_TABLE),
        ({"lora": 1}, NO_TABLE),
        (None, NO_TABLE),
        ({"lora": {"peft_type": "IA3"}}, "the part 'lora' has the type 'IA3'"),
        ({"mine": {"peft_type": "LORA"}}, "the part 'mine' has the type 'LORA'"),
    ],
)
def test_parts_that_are_no_methods_are_refused(
    saved: Callable[..., Path], base: Base, parts: object, words: str
) -> None:
    with pytest.raises(CorruptFileError, match=words):
        load_adapter(saved(peft_type="ONEBASE", parts=parts), base)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"peft_type": "LORA", "r": 2, "r": 4}', "'r' appears twice"),
        ('{"peft_type": "LORA", "runtime_config": {"a": 1, "a": 1}}', "'a' appears twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"peft_type": "LORA", "eva_config": ' + '{"a":' * 50_000 + "1", "nested too deeply"),
        ('{"peft_type": "LORA", "r": ' + "9" * 5000 + "}", "limit"),
    ],
)
def test_a_config_that_cannot_be_read_says_why(
    saved: Callable[..., Path], base: Base, text: str, words: str
) -> None:
    folder = saved()
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CorruptFileError, match=words):
        load_adapter(folder, base)


def test_a_config_with_a_byte_order_mark_is_read(saved: Callable[..., Path], base: Base) -> None:
    file = saved() / "adapter_config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    lora = load_adapter(file.parent, base).lora
    assert lora is not None
    assert len(lora.names) == 12


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 4},
        {"rank_pattern": {"q_proj": 3}},
        {"rank_pattern": {r"layers\.1\.self_attn\.(k|v)_proj": 1}},
    ],
)
def test_a_rank_that_contradicts_the_tensors_is_refused_as_peft_does(
    saved: Callable[..., Path],
    base: Base,
    plain_model: Callable[..., Any],
    changes: dict[str, Any],
) -> None:
    folder = saved(**changes)
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(plain_model("llama"), str(folder))
    field = next(iter(changes))
    with pytest.raises(CorruptFileError, match=rf"{field} .*lora_A\.weight has rank 2"):
        load_adapter(AdapterFolder(folder, foreign=True), base)


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"target_modules": ["q_proj"]}, 3),
        ({"target_modules": r".*\.layers\.[01]\.self_attn\..*_proj"}, 8),
        ({"exclude_modules": ["layers.2.self_attn.o_proj"]}, 11),
        ({"layers_to_transform": [0, 1], "layers_pattern": "layers"}, 8),
        ({"layers_to_transform": 1}, 4),
    ],
)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys", "ignore:Unexpected keys")
def test_a_layer_that_the_config_leaves_out_is_refused_where_peft_passes_over_it(
    saved: Callable[..., Path],
    base: Base,
    plain_model: Callable[..., Any],
    changes: dict[str, Any],
    left: int,
) -> None:
    folder = saved(**changes)
    model = peft.PeftModel.from_pretrained(plain_model("llama"), str(folder))
    names = [name for name, _ in model.named_parameters()]
    assert len([name for name in names if name.endswith("lora_A.default.weight")]) == left
    with pytest.raises(CorruptFileError, match="excludes that layer"):
        load_adapter(folder, base)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r"(?i).*\.SELF_attn\.[qkvo]_proj"},
        {"layers_to_transform": [0, 1, 2]},
        {"layers_to_transform": [0, 1, 2], "layers_pattern": ["blocks", "layers"]},
        {"layers_to_transform": []},
        {"target_modules": None},
    ],
)
def test_a_config_that_names_the_layers_otherwise_is_read(
    saved: Callable[..., Path], base: Base, changes: dict[str, Any]
) -> None:
    lora = load_adapter(saved(**changes), base).lora
    assert lora is not None
    assert len(lora.names) == 12


def test_layers_without_tensors_are_told(saved: Callable[..., Path], base: Base) -> None:
    folder = saved()

    def drop(tensors: dict[str, Any]) -> None:
        for key in [key for key in tensors if ".layers.1." in key]:
            del tensors[key]

    change_tensors(folder, drop)
    notes = read_adapter(AdapterFolder(folder, foreign=True), base).notes
    (note,) = notes
    assert "4 layers without tensors, such as model.layers.1.self_attn" in note


TENSORS: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "scalar": (
        "lora",
        lambda t: t.update({min(t): torch.tensor(1.0)}),
        r"k_proj\.lora_A\.weight has shape \(\), but this base needs \(2, 32\)",
    ),
    "empty": ("lora", lambda t: t.update({min(t): torch.zeros(0, 32)}), "has rank 0"),
    "whole numbers": (
        "lora",
        lambda t: t.update({min(t): t[min(t)].to(torch.int8)}),
        "int8, not floating",
    ),
    "too large for fp32": (
        "lora",
        lambda t: t.update({min(t): t[min(t)].double() + 1e300}),
        "is not finite",
    ),
    "a magnitude without DoRA": (
        "lora",
        lambda t: t.update(
            {min(t).replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(32)}
        ),
        r"also has \S*k_proj\.lora_magnitude_vector,",
    ),
    "a bias": (
        "lora",
        lambda t: t.update(
            {"base_model.model.model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
        ),
        r"also has \S*q_proj\.bias,",
    ),
    "a head of no classifier": (
        "lora",
        lambda t: t.update({"base_model.model.score.weight": torch.ones(1, 32)}),
        r"also has base_model\.model\.score\.weight,",
    ),
    "nothing": ("lora", dict.clear, "it is empty"),
    "an IA3 scalar": (
        "ia3",
        lambda t: t.update({min(t): torch.tensor(1.0)}),
        r"down_proj\.ia3_l has shape \(\), but this base needs \(1, 48\)",
    ),
    "an IA3 vector on the other side": (
        "ia3",
        lambda t: t.update({min(t): t[min(t)].T.contiguous()}),
        r"down_proj\.ia3_l has shape \(48, 1\), but this base needs \(1, 48\)",
    ),
    "a third dimension": (
        "ia3",
        lambda t: t.update({min(t): t[min(t)][None]}),
        r"down_proj\.ia3_l has shape \(1, 1, 48\), but this base needs \(1, 48\)",
    ),
    "a prompt beside others": (
        "prompt-tuning",
        lambda t: t.update({"extra": torch.ones(1)}),
        "also has extra",
    ),
    "a prompt that is a scalar": (
        "prompt-tuning",
        lambda t: t.update({"prompt_embeddings": torch.tensor(1.0)}),
        r"prompt_embeddings has shape \(\), but this base needs \(4, 32\)",
    ),
    "a prefix beside others": (
        "p-tuning-v2",
        lambda t: t.update({"prompt_encoder.weight": torch.ones(1)}),
        "also has prompt_encoder",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_nothing_reads_or_that_do_not_fit_are_named(
    saved: Callable[..., Path], base: Base, name: str
) -> None:
    method, change, words = TENSORS[name]
    folder = saved(method)
    change_tensors(folder, change)
    with pytest.raises(OnebaseError, match=words):
        load_adapter(folder, base)


def test_an_ia3_whose_sides_the_config_exchanges_is_refused(
    saved: Callable[..., Path], base: Base
) -> None:
    with pytest.raises(CorruptFileError, match="ia3_l has shape"):
        load_adapter(saved("ia3", feedforward_modules=["k_proj"]), base)
    loaded = load_adapter(saved("ia3", feedforward_modules=None), base)
    assert loaded.ia3 is not None
    sides = {
        name.rpartition(".")[2]: site for name, site in loaded.ia3.sites.items() if ".1." in name
    }
    assert sides == {"k_proj": (16, False), "v_proj": (16, False), "down_proj": (48, True)}
    assert len(loaded.ia3.sites) == 9


@pytest.mark.parametrize(
    ("written", "other"),
    [
        ("/gone/tiny-llama", False),
        ("owner/Tiny-Llama", False),
        ("C:\\models\\tiny-llama\\", False),
        ("/home/a/.cache/huggingface/hub/models--owner--tiny-llama/snapshots/0123abc", False),
        ("/home/a/.cache/onebase/models/owner--tiny-llama", False),
        ("unsloth/tiny-llama-unsloth-bnb-4bit", False),
        ("tiny-llama.gguf", False),
        ("/gone/Tiny-Llama-Q4_K_M.gguf", False),
        ("owner/tiny-qwen", True),
        ("/gone/mistral", True),
        ("meta-llama/Llama-2-7b-hf", True),
        ("a" * 5000, True),
        ("nul\0byte", True),
    ],
)
def test_which_names_are_another_base(base: Base, written: str, other: bool) -> None:
    assert names_another_base(written, base) is other


@pytest.mark.parametrize(("seed", "other"), [(0, False), (1, True)])
def test_a_folder_that_is_there_is_compared_by_its_weights(
    make_base: MakeBase, tmp_path: Path, seed: int, other: bool
) -> None:
    base = make_base()
    for folder in ("moved", "tiny-llama"):
        make_base(seed=seed).model.save_pretrained(tmp_path / folder)
        assert names_another_base(str(tmp_path / folder), base) is other
    base.path = tmp_path / "moved"
    assert not names_another_base(str(tmp_path / "moved"), base)
    (tmp_path / "empty").mkdir()
    assert names_another_base(str(tmp_path / "empty"), base)


@pytest.mark.parametrize("written", [None, "", "owner/tiny-llama", "owner/tiny-qwen"])
def test_another_base_is_told_by_both_names(
    saved: Callable[..., Path], base: Base, written: str | None
) -> None:
    folder = saved(base_model_name_or_path=written)
    notes = read_adapter(AdapterFolder(folder, foreign=True), base).notes
    if written == "owner/tiny-qwen":
        (note,) = notes
        assert (
            "trained on owner/tiny-qwen, according to its files, but is used on tiny-llama" in note
        )
    else:
        assert notes == ()
