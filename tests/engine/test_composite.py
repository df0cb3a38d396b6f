"""Several methods in one adapter, against a model put together by hand."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from tests.engine.conftest import answered, request_of, task_of
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.data.template import Template
from onebase.engine.forward import run_pack
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pack import Pack
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.engine.rows import TokenRow, token_losses
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

METHODS = {
    "lora+p-tuning+p-tuning-v2": {
        "rank": 3,
        "p-tuning.virtual_tokens": 4,
        "p-tuning.hidden": 8,
        "p-tuning-v2.virtual_tokens": 6,
    },
    "lora+prompt-tuning": {"virtual_tokens": 9, "target": "attention"},
    "ia3+p-tuning-v2": {"virtual_tokens": 5},
    "lora+ia3": {"rank": 2, "layers": "top:2"},
    "prompt-tuning+p-tuning-v2": {"virtual_tokens": 3},
}
IDS = [5, 17, 33, 120, 9, 4, 77, 250, 31, 8, 6, 99]
PLACED = [5, -1, -2, 17, 33, 120, 9, 4, -3, 77, 250, 31]


@pytest.fixture(params=list(METHODS))
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def shaken(base: Base, method: str, *, leading: int = 0, placed: int = 0) -> Adapter:
    settings: dict[str, Any] = METHODS.get(method, {})
    adapter = build_adapter(
        base, method, settings, init_text="hello, you", seed=1, leading=leading, placed=placed
    )
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return adapter


def ours(base: Base, contribution: Any, ids: list[int] = IDS) -> Tensor:
    """In a pack with another adapter and with the bare base."""
    other = build_adapter(base, "lora", {"rank": 5}, init_text="x", seed=4)
    pack = Pack({"other": other.contribution(), "it": contribution})
    pack.add("other", [7, 8, 9])
    node = pack.nodes[pack.add("it", ids)]
    pack.add(None, [4, 5])
    return run_pack(base, pack, torch.arange(node.start, node.start + node.length))


def by_hand(model: Any, adapter: Adapter, ids: list[int] = IDS) -> Tensor:
    """The logits of a model whose weights have the deltas in them, which reads the virtual tokens
    as embeddings behind PEFT's own prefix.
    """
    weights = {}
    if adapter.lora is not None:
        for index, (name, site) in enumerate(adapter.lora.sites.items()):
            frozen = model.get_submodule(name).weight
            delta = site.scale * adapter.lora.b[index] @ adapter.lora.a[index]
            weights[f"{name}.weight"] = frozen + delta
    if adapter.ia3 is not None:
        for vector, (name, (_, inner)) in zip(
            adapter.ia3.vectors, adapter.ia3.sites.items(), strict=True
        ):
            frozen = model.get_submodule(name).weight
            delta = weights.get(f"{name}.weight", frozen) - frozen
            scaled = frozen * vector if inner else frozen * vector[:, None]
            weights[f"{name}.weight"] = scaled + (delta * vector if inner else delta)
    words = model.get_input_embeddings()(torch.tensor(ids).clamp(min=0))
    if adapter.prompt is not None:
        tokens = adapter.prompt()
        first = len(tokens) - adapter.placed
        words = torch.stack(
            [tokens[first - 1 - token] if token < 0 else words[at] for at, token in enumerate(ids)]
        )
        words = torch.cat([tokens[:first], words])
    inner_model = model
    if adapter.prefix is not None:
        rows = adapter.prefix()
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=len(rows), inference_mode=True
        )
        inner_model = peft.get_peft_model(model, config)
        weights = {f"base_model.{name}": value for name, value in weights.items()}
        weights["prompt_encoder.default.embedding.weight"] = rows
    inputs = {
        "inputs_embeds": words[None],
        "attention_mask": torch.ones(1, len(words), dtype=torch.long),
    }
    logits: Tensor = torch.func.functional_call(inner_model.eval(), weights, (), inputs).logits[0]
    return logits[-len(ids) :]


def test_logits_and_gradients_are_those_of_the_model_by_hand(
    method: str,
    architecture: str,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    if "ia3" in method and architecture == "phi3":
        pytest.skip("IA3 is refused on Phi 3")
    base = make_base(architecture)
    adapter = shaken(base, method)
    adapter.eval()
    results = []
    for logits in (
        ours(base, adapter.contribution()),
        by_hand(plain_model(architecture), adapter),
    ):
        parameters = list(adapter.parameters())
        gradients = torch.autograd.grad(logits.log_softmax(-1)[:, 7].sum(), parameters)
        results.append((logits.detach(), gradients))
    (logits, gradients), (expected, reference) = results
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    for gradient, other in zip(gradients, reference, strict=True):
        scale = float(other.abs().max())
        assert scale > 1e-6
        torch.testing.assert_close(gradient / scale, other / scale, atol=1e-4, rtol=0)


def test_placed_tokens_stand_where_the_text_says(
    architecture: str, make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    """Two leading tokens and three inside the text, over a LoRA."""
    base = make_base(architecture)
    adapter = shaken(base, "lora+p-tuning", leading=2, placed=3)
    reference = by_hand(plain_model(architecture), adapter, PLACED)
    torch.testing.assert_close(
        ours(base, adapter.contribution(), PLACED), reference, atol=1e-5, rtol=0
    )
    served = with_prompt_kv(GenericRunner(base), adapter)
    assert (served.virtual, served.prefix_tokens) == (None, 2)
    torch.testing.assert_close(ours(base, served, PLACED), reference, atol=1e-5, rtol=0)


def test_saved_and_read_as_one(
    method: str, tmp_path: Any, make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    base = make_base()
    adapter = shaken(base, method)
    save_adapter(adapter, tmp_path, base)
    read = load_adapter(tmp_path, base)
    assert (read.method, read.trainable() > 0) == (adapter.method, True)
    expected = ours(base, adapter.eval().contribution())
    assert torch.equal(ours(base, read.contribution()), expected)
    torch.testing.assert_close(
        ours(base, with_prompt_kv(GenericRunner(base), read)), expected, atol=1e-5, rtol=0
    )
    with pytest.raises((ValueError, KeyError, TypeError)):  # refused, not misread
        peft.PeftModel.from_pretrained(plain_model("llama"), str(tmp_path))


def test_placed_tokens_are_saved_and_read(tmp_path: Any, make_base: Callable[..., Base]) -> None:
    base = make_base()
    adapter = shaken(base, "prompt-tuning", leading=1, placed=3)
    save_adapter(adapter, tmp_path, base)
    read = load_adapter(tmp_path, base)
    assert (read.method, read.placed) == ("prompt-tuning", 3)
    expected = ours(base, adapter.contribution(), PLACED)
    assert torch.equal(ours(base, read.contribution(), PLACED), expected)


def test_a_shared_beginning_may_hold_placed_tokens(make_base: Callable[..., Base]) -> None:
    base = make_base()
    adapter = shaken(base, "prompt-tuning", placed=2)
    beginning = (5, -1, 6, -2)
    learned = (False,) * 5 + (True,) * 2
    rows = [TokenRow("it", (*beginning, 20 + row, 30, 40 + row), learned) for row in range(3)]
    contributions = {"it": adapter.contribution()}
    together, row_of = token_losses(base, rows, contributions)
    for index, row in enumerate(rows):
        alone, _ = token_losses(base, [row], contributions)
        torch.testing.assert_close(together[row_of == index], alone, atol=1e-5, rtol=0)
    bare = rows[0].bare()
    assert bare == TokenRow(None, (5, 6, 20, 30, 40), (False, False, False, True, True))


def test_generation_reads_placed_tokens(make_base: Callable[..., Base]) -> None:
    base = make_base()
    adapter = shaken(base, "lora+prompt-tuning", leading=6, placed=3)
    template = Template(base.tokenizer, kind="{v:1}{v:5}hello {input}{v:3}")
    assert (template.leading, template.placed) == (6, 3)
    ids = tuple(template.prompt("you"))
    served = with_prompt_kv(GenericRunner(base), adapter)
    (request,) = answered([request_of(task_of(base, served), ids, Sampling(max_tokens=4))])
    text = list(ids)
    for token in request.tokens:
        assert int(ours(base, adapter.contribution(), text)[-1].argmax()) == token
        text.append(token)
