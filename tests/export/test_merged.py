"""A merged model answers like the engine with the adapter, and is a plain folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from onebase.adapters.contribution import Contribution, LowRank, Scaling
from onebase.errors import OnebaseError, UsageError
from onebase.export.merged import check_mergeable, merge, save
from onebase.model.base import Base
from onebase.model.chatglm_tokenizer import ChatGLMTokenizer

MakeBase = Callable[..., Base]
Logits = Callable[[Base, Contribution], Tensor]


def contribution_of(base: Base, kind: str) -> Contribution:
    """Random changes of every linear layer: `lora`, `dora`, `vectors`, or `both`."""
    torch.manual_seed(3)
    deltas, scalings = {}, {}
    for at, (name, (inputs, outputs)) in enumerate(base.shape.linears.items()):
        a, b = torch.randn(4, inputs) * 0.2, torch.randn(outputs, 4) * 0.2
        factor = 1 + torch.rand(outputs) if kind == "dora" else None
        if kind != "vectors":
            deltas[name] = LowRank(a, b, 0.5 + at % 3, factor=factor)
        if kind in ("vectors", "both"):
            on_inputs = at % 2 == 0
            scalings[name] = Scaling(1 + torch.rand(inputs if on_inputs else outputs), on_inputs)
    return Contribution(deltas=deltas, scalings=scalings)


@pytest.mark.parametrize("kind", ["lora", "dora", "vectors", "both"])
def test_logits_equal_the_engines(
    architecture: str,
    kind: str,
    make_base: MakeBase,
    engine_logits: Logits,
    tokens: Tensor,
    tmp_path: Path,
) -> None:
    base = make_base(architecture)
    contribution = contribution_of(base, kind)
    with torch.no_grad():
        plain = base.model(tokens).logits[0]
    expected = engine_logits(base, contribution)
    assert float((expected - plain).abs().max()) > 0.1
    merged = make_base(architecture)
    merge(merged, contribution)
    save(merged, tmp_path, torch.float32, [2])
    read = Base.load(str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(read.model(tokens).logits[0], expected, atol=1e-4, rtol=0)


def test_biases_stay_out_of_the_changes(
    make_family: MakeBase, engine_logits: Logits, tokens: Tensor
) -> None:
    base = make_family("llama-biased")
    contribution = contribution_of(base, "both")
    expected = engine_logits(base, contribution)
    merged = make_family("llama-biased")
    merge(merged, contribution)
    with torch.no_grad():
        torch.testing.assert_close(merged.model(tokens).logits[0], expected, atol=1e-4, rtol=0)


def test_the_folder_is_one_for_transformers(make_family: MakeBase, tmp_path: Path) -> None:
    base = make_family("llama")
    base.model.generation_config.max_length = 77
    save(base, tmp_path, torch.float32, [2])
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert model.generation_config.max_length == 77
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == base.tokenizer.chat_template
    assert tokenizer.eos_token == base.tokenizer.eos_token
    assert "onebase" not in (tmp_path / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_smaller_types(kind: torch.dtype, make_family: MakeBase, tmp_path: Path) -> None:
    base = make_family("llama")
    expected = {name: weight.detach().to(kind) for name, weight in base.model.named_parameters()}
    save(base, tmp_path, kind, [2])
    saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())
    assert saved.keys() == expected.keys()
    for name, weight in expected.items():
        assert saved[name].dtype == kind
        assert torch.equal(saved[name], weight)


def test_values_that_a_type_can_not_hold(make_family: MakeBase, tmp_path: Path) -> None:
    base = make_family("llama")
    base.model.lm_head.weight.data[3, 4] = 70000.0
    with pytest.raises(OnebaseError, match=r"lm_head\.weight .* float16"):
        save(base, tmp_path, torch.float16, [2])


def test_a_tokenizer_of_no_plain_folder(make_family: MakeBase, tmp_path: Path) -> None:
    base = make_family("llama")
    base.tokenizer = ChatGLMTokenizer.__new__(ChatGLMTokenizer)
    with pytest.raises(UsageError, match="ChatGLM's own tokenizer"):
        save(base, tmp_path, torch.float32, [2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "word"),
    [("virtual", "virtual tokens"), ("placed", "virtual tokens"), ("prefix", "prefix of keys")],
)
def test_what_is_no_weight_is_refused(part: str, word: str) -> None:
    rows = torch.zeros(3, 2, 4, 8)
    value = (rows, rows) if part == "prefix" else torch.zeros(4, 32)
    with pytest.raises(UsageError, match=word) as caught:
        check_mergeable(Contribution(**{part: value}), "support@1")
    assert "support@1" in caught.value.message
    known_to_peft = part != "placed"
    assert ("--to peft" in caught.value.remedy) == known_to_peft
    if known_to_peft:
        deltas = {"x": LowRank(torch.zeros(1, 2), torch.zeros(2, 1), 1.0)}
        with pytest.raises(UsageError, match=word) as caught:
            check_mergeable(Contribution(deltas=deltas, **{part: value}), "support@1")
        assert "--to peft" not in caught.value.remedy
