"""Building adapters: names, settings and their errors, seeds, and low-rank deltas."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import NOTHING
from onebase.adapters.full import FULL, trainable_copy
from onebase.adapters.lora import LoraOptions, targets
from onebase.adapters.methods import (
    ALIASES,
    METHODS,
    build_adapter,
    canonical_method,
    parse_options,
)
from onebase.adapters.prefix import PTuningV2Options
from onebase.adapters.prompt import PTuningOptions
from onebase.errors import UsageError
from onebase.model.base import Base, ModelShape
from onebase.model.precision import choose

TEXT = "the parcel is on its way, how are you?"


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


@pytest.fixture
def base(make_base: Callable[..., Base]) -> Base:
    return make_base()


def ids_of(base: Base, text: str = TEXT) -> list[int]:
    ids: list[int] = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def build(base: Base, method: str, *, seed: int = 0, text: str = TEXT, **settings: Any) -> Adapter:
    return build_adapter(base, method, settings, init_text=text, seed=seed)


def virtual(adapter: Adapter) -> Tensor:
    tokens = adapter.contribution().virtual
    assert tokens is not None
    return tokens.detach()


def equal(one: Adapter, other: Adapter) -> bool:
    ours, theirs = one.parts(), other.parts()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# Names and settings


# Of the tiny Llama: hidden size 32, feed-forward 48, keys and values 16, 3 layers, vocabulary 300.
LAYER = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
WEIGHTS = {
    "full": 2 * 300 * 32 + 3 * (LAYER + 2 * 32) + 32,
    # Rank 8: inputs and outputs of q and o, k and v, gate and up and down.
    "lora": 8 * 3 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48)),
    "ia3": 3 * (16 + 16 + 48),
    "prompt-tuning": 20 * 32,
    # An MLP of 32, 256, 256 and 32 over its embeddings.
    "p-tuning": 20 * 32 + (32 * 256 + 256) + (256 * 256 + 256) + (256 * 32 + 32),
    "p-tuning-v2": 20 * 3 * 2 * 16,
}


def test_every_method_builds_with_its_defaults(base: Base) -> None:
    weights = {**WEIGHTS, "qlora": WEIGHTS["lora"]}
    assert weights.keys() == METHODS.keys()
    for method in METHODS:
        adapter = build(trainable_copy(base) if method == FULL else base, method)
        if method == FULL:
            base.hold_in(choose("nf4", device="cpu", stored=torch.float32), "cpu")
        assert adapter.method == method
        assert adapter.options == METHODS[method].options().model_dump()
        assert adapter.trainable() == weights[method]
        assert all(parameter.requires_grad for parameter in adapter.parameters())
        assert not any(parameter.requires_grad for parameter in base.model.parameters())


CHINESE = re.compile("[\u4e00-\u9fff]")


def assert_in_both_languages(english: str | None, chinese: object) -> None:
    assert english is not None
    assert english.endswith(".")
    assert not CHINESE.search(english)
    assert isinstance(chinese, str)
    assert chinese.endswith("。")
    assert CHINESE.search(chinese)


@pytest.mark.parametrize("method", METHODS)
def test_methods_and_their_options_are_described_in_both_languages(method: str) -> None:
    chosen = METHODS[method]
    for english, chinese in (chosen.summary, chosen.paper, chosen.not_for):
        assert_in_both_languages(english, chinese)
    cited = [re.findall(r"arXiv:\d{4}\.\d{5}", text) for text in chosen.paper]
    assert cited[0]
    assert cited[0] == cited[1]
    for name, field in chosen.options.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict), name
        assert_in_both_languages(field.description, extra["zh"])


@pytest.mark.parametrize(("alias", "method"), ALIASES.items())
def test_aliases(alias: str, method: str, base: Base) -> None:
    assert canonical_method(alias) == method
    assert build(base, alias).method == method
    assert equal(build(base, alias), build(base, method))


def test_an_unknown_method_names_the_nearest_and_all() -> None:
    with pytest.raises(UsageError) as caught:
        canonical_method("lorra")
    assert caught.value.message == "Unknown method: 'lorra'."
    assert caught.value.remedy == (
        "Did you mean 'lora'? Valid: full, ia3, lora, p-tuning, p-tuning-v2, prefix-tuning, "
        "prompt-tuning, qlora."
    )
    with pytest.raises(UsageError) as caught:
        canonical_method("zzz")
    assert caught.value.remedy.startswith("Valid: full, ia3, lora,")


def test_an_unknown_setting_names_the_nearest_and_all(base: Base) -> None:
    with pytest.raises(UsageError) as caught:
        build(base, "lora", ranc=4)
    assert caught.value.message == "Unknown setting: 'ranc'."
    assert caught.value.remedy == (
        "Did you mean 'rank'? Valid: alpha, alpha_pattern, dropout, layers, loraplus_lr_ratio, "
        "rank, rank_pattern, target, use_dora, use_rslora."
    )
    with pytest.raises(UsageError, match=r"Unknown setting: 'rank'\. .*virtual_tokens"):
        build(base, "prompt-tuning", rank=4)


@pytest.mark.parametrize(
    ("method", "setting", "value", "reason"),
    [
        ("lora", "rank", 0, "greater than or equal to 1"),
        ("lora", "rank", 513, "less than or equal to 512"),
        ("lora", "rank", "many", "valid integer"),
        ("lora", "rank", 1.5, "valid integer"),
        ("lora", "alpha", 0, "greater than 0"),
        ("lora", "dropout", 1.0, "less than 1"),
        ("lora", "target", 3, "valid string"),
        ("prompt-tuning", "virtual_tokens", 0, "greater than or equal to 1"),
        ("prompt-tuning", "init", "words", "'text', 'vocab' or 'random'"),
        ("p-tuning", "encoder", "gru", "'lstm' or 'mlp'"),
        ("p-tuning", "encoder_layers", 9, "less than or equal to 8"),
        ("p-tuning", "hidden", 0, "greater than or equal to 1"),
        ("p-tuning-v2", "projection", "perhaps", "valid boolean"),
        ("prefix-tuning", "virtual_tokens", 1025, "less than or equal to 1024"),
    ],
)
def test_a_bad_value_names_the_setting_the_value_and_the_rule(
    method: str, setting: str, value: object, reason: str, base: Base
) -> None:
    with pytest.raises(UsageError) as caught:
        build(base, method, **{setting: value})
    assert caught.value.message == f"{setting}={value!r} is not valid."
    assert reason in caught.value.remedy


def test_values_may_come_as_text() -> None:
    lora = parse_options(LoraOptions, {"rank": "4", "alpha": "2.5"})
    assert (lora.rank, lora.alpha) == (4, 2.5)
    assert parse_options(PTuningV2Options, {"projection": "true"}).projection is True
    assert parse_options(PTuningOptions, {}).encoder == "mlp"


# Seeds

SEEDED: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}),
    ("prompt-tuning", {"init": "random"}),
    ("prompt-tuning", {"init": "vocab"}),
    ("p-tuning", {}),
    ("p-tuning", {"init": "vocab"}),
    ("p-tuning", {"init": "random", "encoder": "lstm"}),
    ("p-tuning-v2", {"init": "random"}),
    ("p-tuning-v2", {"init": "vocab"}),
    ("p-tuning-v2", {"projection": True}),
]


@pytest.mark.parametrize(("method", "settings"), SEEDED)
def test_a_seed_says_how_an_adapter_starts(
    method: str, settings: dict[str, Any], base: Base
) -> None:
    one = build(base, method, seed=3, **settings)
    torch.manual_seed(99)
    drawn = torch.rand(2)
    torch.manual_seed(99)
    assert equal(build(base, method, seed=3, **settings), one)
    assert torch.equal(torch.rand(2), drawn)  # nobody else's draws change
    assert not equal(build(base, method, seed=4, **settings), one)


# Low-rank deltas


@pytest.mark.parametrize("target", ["all-linear", "attention", "down_proj"])
def test_lora_starts_as_the_base_itself(target: str, architecture: str, make_base: Any) -> None:
    base = make_base(architecture)
    adapter = build(base, "lora", rank=3, alpha=6, target=target)
    deltas = adapter.contribution().deltas
    assert list(deltas) == list(targets(base.shape, target))
    for name, delta in deltas.items():
        inputs, outputs = base.shape.linears[name]
        assert delta.a.shape == (3, inputs)
        assert delta.b.shape == (outputs, 3)
        assert delta.scale == 2
        assert not delta.b.any()
        # Uniform with the variance of a linear layer of these inputs.
        assert 0.8 < float(delta.a.detach().abs().max()) * inputs**0.5 <= 1


def test_dropout_is_for_training_only(base: Base) -> None:
    adapter = build(base, "lora", dropout=0.25)
    assert {delta.dropout for delta in adapter.contribution().deltas.values()} == {0.25}
    adapter.eval()
    assert {delta.dropout for delta in adapter.contribution().deltas.values()} == {0.0}


def test_targets(architecture: str, make_base: Callable[..., Base]) -> None:
    shape = make_base(architecture).shape
    if architecture == "phi3":
        assert {name.rsplit(".", 1)[-1] for name in targets(shape, "attention")} == {
            "qkv_proj",
            "o_proj",
        }
        return
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    every = targets(shape, "all-linear")
    assert {name.rsplit(".", 1)[-1] for name in targets(shape, "attention")} == attention
    glm = architecture.startswith("glm")
    inner = {"gate_up_proj", "down_proj"} if glm else {"gate_proj", "up_proj", "down_proj"}
    assert {name.rsplit(".", 1)[-1] for name in every} == attention | inner
    assert len(every) == 3 * (4 + len(inner))
    assert len(targets(shape, "attention")) == 3 * 4
    some = targets(shape, " v_proj,q_proj ")
    assert list(some) == [name for name in every if name.endswith(("q_proj", "v_proj"))]
    assert some == {name: every[name] for name in some}
    assert every["model.layers.0.self_attn.k_proj"] == (32, 16)


@pytest.mark.parametrize(
    ("target", "missing"),
    [("nope", "nope"), ("q_proj,nope,bad", "bad, nope"), ("", ""), ("Attention", "Attention")],
)
def test_a_target_that_names_no_layer(target: str, missing: str, base: Base) -> None:
    with pytest.raises(UsageError) as caught:
        build(base, "lora", target=target)
    assert caught.value.message == f"No linear layer is named {missing!r}."
    assert caught.value.remedy == (
        "Valid targets: attention, all-linear, "
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or re: followed by a regular "
        "expression for full names."
    )


@pytest.mark.parametrize("target", ["attention", "all-linear"])
def test_a_base_without_such_a_layer(target: str) -> None:
    linears = {"model.layers.0.mixer.in": (8, 8)} if target == "attention" else {}
    shape = ModelShape(8, 1, 2, 2, 4, 30, linears)
    with pytest.raises(UsageError) as caught:
        targets(shape, target)
    assert caught.value.message == (
        f"target={target} with layers=all selects no linear layer of this base."
    )


def test_nothing_is_what_the_base_brings() -> None:
    assert not NOTHING.deltas
    assert NOTHING.virtual_tokens == NOTHING.prefix_tokens == 0
