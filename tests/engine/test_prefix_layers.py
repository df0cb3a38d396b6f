"""A deep prefix on chosen layers, against transformers' own layers behind masks made by hand."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import answered, request_of
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

import onebase.engine.generic_runner as generic
from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.data.template import Template
from onebase.engine.attention import PackedAttention
from onebase.engine.engine import Engine
from onebase.engine.forward import run_pack
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.pack import Pack
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.engine.request import Request
from onebase.engine.rows import TokenRow, token_losses
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

Rows = Callable[..., list[TokenRow]]
# Prefixes shorter and longer than the sliding windows of 8; the layers in them.
VARIANTS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "top": ("p-tuning-v2", {"virtual_tokens": 10, "layers": "top:1"}, (2,)),
    "ends": ("p-tuning-v2", {"virtual_tokens": 4, "layers": "0,2", "init": "random"}, (0, 2)),
    "bottom": ("p-tuning-v2", {"virtual_tokens": 5, "layers": "bottom:2", "init": "vocab"}, (0, 1)),
    "projection": (
        "p-tuning-v2",
        {"virtual_tokens": 6, "layers": "1", "projection": True, "hidden": 8},
        (1,),
    ),
    "composite": (
        "lora+p-tuning+p-tuning-v2",
        {
            "rank": 3,
            "p-tuning.hidden": 8,
            "p-tuning.virtual_tokens": 4,
            "p-tuning-v2.virtual_tokens": 7,
            "p-tuning-v2.layers": "top:2",
        },
        (1, 2),
    ),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "everywhere": ("p-tuning-v2", {"virtual_tokens": 3}),
    "prompt": ("prompt-tuning", {"virtual_tokens": 9}),
    "lora": ("lora", {"rank": 2}),
}
IDS = [5, 17, 33, 120, 9, 4, 77, 250, 31, 8, 6, 99]


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(base: Base, name: str) -> Adapter:
    """An adapter of VARIANTS or OTHERS that is not where it started."""
    method, settings = VARIANTS[name][:2] if name in VARIANTS else OTHERS[name]
    seed = [*VARIANTS, *OTHERS].index(name)
    adapter = build_adapter(base, method, settings, init_text="hello, you", seed=seed)
    torch.manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return adapter.eval()


@pytest.fixture
def mixed(base: Base) -> dict[str, Adapter]:
    return {name: make(base, name) for name in [*VARIANTS, *OTHERS]}


@contextmanager
def masked(model: Any, prefix: int, layers: Sequence[int]) -> Iterator[None]:
    """Every attention of `model` sees the masks that are made here: a text behind `prefix` keys
    in `layers`, and behind none, at the same positions, in the others.
    """
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * len(model.model.layers)

    def mask_of(index: int) -> Any:
        window = getattr(config, "sliding_window", None)
        window = window if kinds[index] == "sliding_attention" else None

        def enter(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            hidden = args[0] if args else kwargs["hidden_states"]
            positions = [prefix + at for at in range(hidden.shape[1])]
            keys = [*range(prefix), *positions] if index in layers else positions
            mask = torch.full((1, 1, len(positions), len(keys)), float("-inf"))
            for row, query in enumerate(positions):
                for column, key in enumerate(keys):
                    if key <= query and (window is None or query - key < window):
                        mask[0, 0, row, column] = 0.0
            return args, {**kwargs, "attention_mask": mask}

        return enter

    hooks = [
        layer.self_attn.register_forward_pre_hook(mask_of(index), with_kwargs=True)
        for index, layer in enumerate(model.model.layers)
    ]
    yield
    for hook in hooks:
        hook.remove()


def by_hand(model: Any, adapter: Adapter, layers: Sequence[int], ids: Sequence[int]) -> Tensor:
    """The logits of `ids`: the model with the deltas in its weights reads the virtual tokens as
    embeddings behind a cache that is empty in the layers without a prefix.
    """
    weights = {}
    if adapter.lora is not None:
        for index, (name, site) in enumerate(adapter.lora.sites.items()):
            delta = site.scale * adapter.lora.b[index] @ adapter.lora.a[index]
            weights[f"{name}.weight"] = model.get_submodule(name).weight + delta
    words = model.get_input_embeddings()(torch.tensor(ids))
    if adapter.prompt is not None:
        words = torch.cat([adapter.prompt(), words])
    assert adapter.prefix is not None
    rows = adapter.prefix()
    config = model.config
    of_tokens = rows.view(len(rows), len(layers), 2, config.num_key_value_heads, -1)
    cache = DynamicCache()
    for layer in range(len(model.model.layers)):
        at, count = (layers.index(layer), len(rows)) if layer in layers else (0, 0)
        keys, values = of_tokens[:count, at].permute(1, 2, 0, 3)[:, None]
        cache.update(keys, values, layer)
    inputs = {
        "inputs_embeds": words[None],
        "position_ids": torch.arange(len(rows), len(rows) + len(words))[None],
        "past_key_values": cache,
        "use_cache": True,
    }
    with masked(model, len(rows), layers):
        logits: Tensor = torch.func.functional_call(model, weights, (), inputs).logits[0]
    return logits[-len(ids) :]


def test_losses_and_gradients_are_those_of_transformers(
    architecture: str,
    base: Base,
    mixed: dict[str, Adapter],
    plain_model: Callable[..., Any],
    make_rows: Rows,
) -> None:
    """All in one pass with other methods and the base, rows sharing their beginnings."""
    rows = [
        row
        for seed, name in enumerate([*mixed, None])
        for row in make_rows(name, shared=5, seed=seed)
    ]
    contributions = {name: adapter.contribution() for name, adapter in mixed.items()}
    losses, row_of = token_losses(base, rows, contributions)
    losses.sum().backward()
    model = plain_model(architecture).requires_grad_(False)
    for name, (_, _, layers) in VARIANTS.items():
        adapter = mixed[name]
        parameters = list(adapter.parameters())
        expected = torch.zeros(())
        for index, row in enumerate(rows):
            if row.adapter != name:
                continue
            logits = by_hand(model, adapter, layers, row.ids)
            row_losses = cross_entropy(logits[:-1], torch.tensor(row.ids[1:]), reduction="none")
            row_losses = row_losses[torch.tensor(row.loss_mask[1:])]
            torch.testing.assert_close(losses[row_of == index], row_losses, atol=1e-5, rtol=0)
            expected = expected + row_losses.sum()
        for parameter, theirs in zip(
            parameters, torch.autograd.grad(expected, parameters), strict=True
        ):
            scale = float(theirs.abs().max())
            assert scale > 1e-6
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad / scale, theirs / scale, atol=1e-4, rtol=0)


def test_a_layer_without_a_prefix_attends_to_no_zeros_either(
    architecture: str, base: Base, make_rows: Rows
) -> None:
    """A prefix in no layer but the last leaves the text below it as it is without one."""
    adapter = make(base, "top")
    row = make_rows("it")[0]
    captured = []
    for name in ("it", None):
        pack = Pack({"it": adapter.contribution()})
        pack.add(name, row.ids)
        attention = PackedAttention(pack, base.device)
        kept = attention.capture()
        with torch.no_grad():
            run_pack(base, pack, torch.tensor([0]), attention=attention)
        captured.append({layer: values for layer, (_, values) in kept.items()})
    for layer in range(3):  # values carry no position
        torch.testing.assert_close(captured[0][layer], captured[1][layer], atol=1e-5, rtol=0)


@pytest.fixture
def engine(base: Base, mixed: dict[str, Adapter]) -> Engine:
    engine = Engine(base)
    for name, adapter in mixed.items():
        engine.tasks.load(name, adapter, Template(base.tokenizer))
    return engine


def generated(
    engine: Engine, prompts: Sequence[tuple[str, Sequence[int], int]], slots: int
) -> list[Request]:
    nothing: frozenset[int] = frozenset()  # random models end anywhere
    return answered(
        [
            request_of(engine.tasks[name], ids, Sampling(max_tokens=most), ends=nothing)
            for name, ids, most in prompts
        ],
        slots,
    )


def test_answers_are_those_of_reading_everything_anew(
    architecture: str, variant: str, engine: Engine, plain_model: Callable[..., Any]
) -> None:
    """Token for token, beyond a sliding window."""
    adapter, layers = make(engine.base, variant), VARIANTS[variant][2]
    model = plain_model(architecture)
    ids = IDS
    for token in generated(engine, [(variant, ids, 10)], 1)[0].tokens:
        with torch.no_grad():
            assert int(by_hand(model, adapter, layers, ids)[-1].argmax()) == token
        ids = [*ids, token]
    assert len(ids) == len(IDS) + 10


@pytest.mark.parametrize("slots", [2, 16])
def test_a_mixed_batch_answers_as_each_alone(slots: int, engine: Engine) -> None:
    names = [*VARIANTS, *OTHERS, "base"]
    prompts = [(name, IDS[: 3 + at % 7], (4, 15, 9)[at % 3]) for at, name in enumerate(names * 2)]
    together = generated(engine, prompts, slots)
    for one, stream in zip(prompts, together, strict=True):
        (alone,) = generated(engine, [one], 1)
        assert stream.tokens == alone.tokens
        assert stream.margins == pytest.approx(alone.margins, abs=1e-4)


def test_virtual_tokens_compile_behind_it(
    tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In layers without the prefix the compiled tokens alone are seen; the same from a file."""
    adapter = make(base, "composite")
    save_adapter(adapter, tmp_path, base)
    expected = logits_of(base, adapter.contribution())
    runner = GenericRunner(base)
    served = with_prompt_kv(runner, adapter, tmp_path)
    assert (served.virtual, served.prefix_tokens, served.masked_prefix) == (None, 11, (7, 0, 0))
    torch.testing.assert_close(logits_of(base, served), expected, atol=1e-5, rtol=0)
    read_adapter = load_adapter(tmp_path, base)
    with monkeypatch.context() as patched:
        patched.setattr(generic, "node_kv", None)  # not run again
        read = with_prompt_kv(runner, read_adapter, tmp_path)
    assert read.masked_prefix == served.masked_prefix
    assert torch.equal(logits_of(base, read), logits_of(base, served))
    config = tmp_path / "adapter_config.json"
    settings_json = json.loads(config.read_text(encoding="utf-8"))
    settings_json["parts"]["p-tuning-v2"]["layers"] = [0, 2]  # the weights file stays
    config.write_text(json.dumps(settings_json), encoding="utf-8")
    moved = load_adapter(tmp_path, base)
    anew, fresh = with_prompt_kv(runner, moved, tmp_path), with_prompt_kv(runner, moved)
    assert anew.prefix is not None
    assert fresh.prefix is not None
    assert torch.equal(anew.prefix[0], fresh.prefix[0])
    assert anew.masked_prefix == (0, 7, 0)


def logits_of(base: Base, contribution: Any) -> Tensor:
    pack = Pack({"it": contribution})
    node = pack.nodes[pack.add("it", IDS)]
    with torch.no_grad():
        return run_pack(base, pack, torch.arange(node.start, node.start + node.length))
