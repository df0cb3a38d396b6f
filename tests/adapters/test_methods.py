"""Building adapters: names, settings and their errors, seeds, and where each method starts."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

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
from onebase.adapters.prefix import PTuningV2Options, flatten
from onebase.adapters.prompt import PTuningOptions
from onebase.engine.forward import prepare, run_pack
from onebase.engine.pack import Pack
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


def test_every_method_builds_with_its_defaults(base: Base) -> None:
    for method in METHODS:
        adapter = build(trainable_copy(base) if method == FULL else base, method)
        if method == FULL:
            base.hold_in(choose("nf4", device="cpu", stored=torch.float32), "cpu")
        assert adapter.method == method
        assert adapter.options == METHODS[method].options().model_dump()
        assert adapter.trainable() > 0
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
    assert {name.rsplit(".", 1)[-1] for name in every} > attention
    assert not any("lm_head" in name or "embed" in name for name in every)
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


# Virtual tokens


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("prompt-tuning", {}),
        ("p-tuning", {}),
        ("p-tuning", {"encoder": "lstm", "hidden": 8, "encoder_layers": 1}),
    ],
)
def test_virtual_tokens_start_as_a_text(
    method: str, settings: dict[str, Any], architecture: str, make_base: Callable[..., Base]
) -> None:
    base = make_base(architecture)
    ids = ids_of(base)
    for count in (1, len(ids) - 1, len(ids), 2 * len(ids) + 3):
        adapter = build(base, method, virtual_tokens=count, **settings)
        tiled = [ids[index % len(ids)] for index in range(count)]
        # As the model itself embeds them: Gemma scales.
        with torch.no_grad():
            expected = base.embedding(torch.tensor(tiled))
        assert torch.equal(virtual(adapter), expected)


def test_init_text_stands_in_for_the_instruction(base: Base) -> None:
    given = build(base, "prompt-tuning", init_text="hello", virtual_tokens=2)
    assert equal(given, build(base, "prompt-tuning", text="hello", virtual_tokens=2))
    assert not equal(given, build(base, "prompt-tuning", virtual_tokens=2))


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "p-tuning-v2"])
def test_a_text_without_a_token(method: str, base: Base) -> None:
    with pytest.raises(UsageError) as caught:
        build(base, method, text="")
    assert caught.value.message == "The initial text '' has no tokens."
    assert caught.value.remedy == "Give init_text=…, or init=vocab."
    build(base, method, text="", init="vocab")
    build(base, method, text="", init="random")


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning"])
def test_virtual_tokens_start_as_tokens_of_the_vocabulary(method: str, base: Base) -> None:
    start = virtual(build(base, method, init="vocab", virtual_tokens=30))
    nearest = torch.cdist(start, base.embedding.weight).min(1)
    assert float(nearest.values.max()) < 1e-3
    assert len(nearest.indices.unique()) > 20
    for token, index in zip(start, nearest.indices, strict=True):
        assert torch.equal(token, base.embedding.weight[index])


def test_random_virtual_tokens_spread_like_the_embeddings(base: Base) -> None:
    start = virtual(build(base, "prompt-tuning", init="random", virtual_tokens=500))
    assert float(start.std()) == pytest.approx(float(base.embedding.weight.std()), rel=0.05)
    assert abs(float(start.mean())) < 0.01


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_a_p_tuning_encoder_learns_from_its_first_step(encoder: str, base: Base) -> None:
    adapter = build(base, "p-tuning", encoder=encoder, hidden=8, virtual_tokens=4)
    before = virtual(adapter)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        tokens = adapter.contribution().virtual
        assert tokens is not None
        tokens.square().sum().backward()
        optimizer.step()
    # What is learned is added to the start.
    learned = adapter.parts()
    alone = build(base, "p-tuning", encoder=encoder, hidden=8, virtual_tokens=4, init="random")
    start = learned.pop("prompt.start")
    alone.load_state_dict(learned)
    torch.testing.assert_close(virtual(adapter), start + virtual(alone))
    # The last layer starts at zero, so the others learn from the second step on.
    assert all(bool(parameter.grad.any()) for parameter in adapter.parameters())  # type: ignore[union-attr]
    assert not torch.equal(virtual(adapter), before)


def test_a_random_p_tuning_encoder_stands_alone(base: Base) -> None:
    adapter = build(base, "p-tuning", init="random")
    assert adapter.prompt is not None
    assert adapter.prompt.start is None
    assert virtual(adapter).shape == (20, 32)
    assert bool(virtual(adapter).any())


# The KV prefix


def rows_logits(base: Base, adapter: Adapter, ids: list[int]) -> Tensor:
    pack = Pack({"a": adapter.contribution()})
    pack.add("a", ids)
    with torch.no_grad():
        return run_pack(base, pack, torch.arange(len(ids)))


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_prefix_started_from_a_text_is_that_text(
    projection: bool,
    prepared: bool,
    architecture: str,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    base = make_base(architecture)
    if prepared:  # with our attention in the model instead of its own
        prepare(base)
    text = ids_of(base)
    assert len(text) > 9  # longer than Gemma's window
    row = list(range(40, 52))
    adapter = build(base, "p-tuning-v2", virtual_tokens=len(text), projection=projection, hidden=8)
    with torch.no_grad():
        expected = plain_model(architecture)(torch.tensor([text + row])).logits[0, len(text) :]
    ours = rows_logits(base, adapter, row)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_a_prefix_has_the_base_s_keys_and_values(base: Base) -> None:
    text = ids_of(base)
    short, long = (
        build(base, "p-tuning-v2", virtual_tokens=count).contribution().prefix
        for count in (3, len(text) + 3)
    )
    assert short is not None
    assert long is not None
    with torch.no_grad():
        cache = base.model(torch.tensor([text + text[:3]]), use_cache=True).past_key_values
    for layer in range(3):
        for kind, expected in enumerate((cache.layers[layer].keys, cache.layers[layer].values)):
            close = {"atol": 1e-5, "rtol": 0}
            torch.testing.assert_close(long[kind][layer].detach(), expected[0], **close)
            torch.testing.assert_close(short[kind][layer].detach(), expected[0][:, :3], **close)


def test_a_prefix_from_the_vocabulary_is_some_text(base: Base) -> None:
    adapter = build(base, "p-tuning-v2", init="vocab", virtual_tokens=6, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        ids = torch.randint(0, base.shape.vocabulary, (6,)).tolist()
    with torch.no_grad():
        expected = base.model(torch.tensor([[*ids, 9, 8, 7]])).logits[0, 6:]
    ours = rows_logits(base, adapter, [9, 8, 7])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("projection", [False, True])
def test_a_random_prefix(projection: bool, base: Base) -> None:
    adapter = build(base, "p-tuning-v2", init="random", projection=projection, virtual_tokens=7)
    assert adapter.prefix is not None
    assert adapter.prefix.start is None
    contribution = adapter.contribution()
    assert contribution.prefix is not None
    keys, values = contribution.prefix
    assert keys.shape == values.shape == (3, 2, 7, 8)
    assert contribution.prefix_tokens == 7
    assert contribution.virtual_tokens == 0
    assert bool(keys.any())
    assert torch.equal(flatten(keys, values), adapter.prefix())  # there and back


def test_the_projection_may_be_of_another_width_than_the_base() -> None:
    """kv_heads * head_dim is not the hidden size, nor heads * head_dim."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        pad_token_id=0,
    )
    base = Base(LlamaForCausalLM(config), None, name="narrow")
    adapter = build(base, "p-tuning-v2", init="random", projection=True, virtual_tokens=3)
    assert adapter.prefix is not None
    assert isinstance(adapter.prefix.transform, nn.Sequential)
    assert adapter.prefix().shape == (3, 2 * 2 * 2 * 10)
    assert rows_logits(base, adapter, [1, 2, 3]).shape == (3, 50)


def test_nothing_is_what_the_base_brings() -> None:
    assert not NOTHING.deltas
    assert NOTHING.virtual_tokens == NOTHING.prefix_tokens == 0
