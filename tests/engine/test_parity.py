"""Every method in a mixed batch against PEFT's own forward for that adapter alone."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch.nn.functional import cross_entropy

from onebase.adapters.adapter import Adapter
from onebase.adapters.methods import build_adapter
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.engine.rows import TokenRow, token_losses
from onebase.model.base import Base

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 4}),
    "lora-attention": ("lora", {"rank": 2, "target": "attention", "alpha": 3.0}),
    "prompt-tuning": ("prompt-tuning", {"virtual_tokens": 5, "init": "random"}),
    "p-tuning-mlp": ("p-tuning", {"virtual_tokens": 6, "hidden": 16, "init": "random"}),
    "p-tuning-lstm": (
        "p-tuning",
        {"virtual_tokens": 4, "hidden": 8, "encoder": "lstm", "init": "random"},
    ),
    "p-tuning-v2": ("p-tuning-v2", {"virtual_tokens": 7, "init": "random"}),
    "p-tuning-v2-projection": (
        "p-tuning-v2",
        {"virtual_tokens": 3, "projection": True, "hidden": 16, "init": "random"},
    ),
}


def adapters_for(base: Base) -> dict[str, Adapter]:
    built = {}
    for seed, (name, (method, settings)) in enumerate(VARIANTS.items()):
        built[name] = build_adapter(base, method, settings, init_text="hello", seed=seed)
        if built[name].lora is not None:
            torch.manual_seed(seed)
            for matrix in built[name].lora.b:
                torch.nn.init.normal_(matrix, std=0.2)
    return built


def peft_twin(model: Any, base: Base, adapter: Adapter) -> tuple[Any, dict[str, Any]]:
    """PEFT's model with this adapter's weights, and our parameters by PEFT's parameters."""
    options = adapter.options
    if adapter.lora is not None:
        wanted = sorted({name.rsplit(".", 1)[-1] for name in adapter.lora.names})
        config: Any = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=options["rank"],
            lora_alpha=options["alpha"],
            target_modules=wanted,
        )
        twin = peft.get_peft_model(model, config)
        pairs = {}
        for index, name in enumerate(adapter.lora.names):
            module = twin.get_submodule(f"base_model.model.{name}")
            pairs[module.lora_A["default"].weight] = adapter.lora.a[index]
            pairs[module.lora_B["default"].weight] = adapter.lora.b[index]
    else:
        tokens = options["virtual_tokens"]
        if adapter.prefix is not None:
            config = peft.PrefixTuningConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=tokens,
                prefix_projection=options["projection"],
                encoder_hidden_size=options["hidden"],
            )
            ours = dict(adapter.prefix.named_parameters())
            names = {key: key for key in ours}
        elif adapter.method == "p-tuning":
            kind = options["encoder"].upper()
            config = peft.PromptEncoderConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=tokens,
                encoder_reparameterization_type=kind,
                encoder_hidden_size=options["hidden"],
            )
            assert adapter.prompt is not None
            ours = dict(adapter.prompt.named_parameters())
            names = {
                key: key.replace("mlp.", "mlp_head.").replace("lstm.", "lstm_head.") for key in ours
            }
        else:
            config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
            assert adapter.prompt is not None
            ours = dict(adapter.prompt.named_parameters())
            names = {"embedding": "embedding.weight"}
        twin = peft.get_peft_model(model, config)
        theirs = dict(twin.prompt_encoder["default"].named_parameters())
        pairs = {theirs[names[key]]: parameter for key, parameter in ours.items()}
    for their, our in pairs.items():
        assert their.shape == our.shape
        their.data.copy_(our.data)
    return twin.eval(), pairs


def texts(count: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(3, 300, (length + 3 * i,), generator=generator).tolist() for i in range(count)
    ]


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_logits_in_a_mixed_batch_equal_pefts(
    variant: str,
    architecture: str,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    base = make_base(architecture)
    adapters = adapters_for(base)
    pack = Pack({name: adapter.contribution() for name, adapter in adapters.items()})
    nodes: list[tuple[str | None, list[int], int]] = []
    for seed, name in enumerate([None, *adapters, None]):
        for ids in texts(2, 12, seed):
            nodes.append((name, ids, pack.add(name, ids)))
    with torch.no_grad():
        logits = run_pack(base, pack, torch.arange(len(pack.ids)))
        twin, _ = peft_twin(plain_model(architecture), base, adapters[variant])
        for name, ids, index in nodes:
            if name == variant:
                node = pack.nodes[index]
                ours = logits[node.start : node.start + node.length]
                theirs = twin(input_ids=torch.tensor([ids])).logits[0, -len(ids) :]
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_base_rows_in_a_mixed_batch_equal_the_plain_model(
    architecture: str, make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    base = make_base(architecture)
    adapters = adapters_for(base)
    pack = Pack({name: adapter.contribution() for name, adapter in adapters.items()})
    ids = texts(1, 14, 99)[0]
    for name in adapters:
        pack.add(name, texts(1, 9, 3)[0])
    node = pack.nodes[pack.add(None, ids)]
    with torch.no_grad():
        logits = run_pack(base, pack, torch.arange(node.start, node.start + node.length))
        theirs = plain_model(architecture)(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_gradients_in_a_mixed_batch_equal_a_padded_loop_in_peft(
    variant: str,
    architecture: str,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    base = make_base(architecture)
    adapters = adapters_for(base)
    rows = []
    for seed, name in enumerate(adapters):
        shared = texts(1, 5, 50 + seed)[0]
        for ids in texts(3, 6, seed):
            whole = shared + ids
            learned = [False] * 7 + [True] * (len(whole) - 7)
            rows.append(TokenRow(name, tuple(whole), tuple(learned)))
    contributions = {name: adapter.contribution() for name, adapter in adapters.items()}
    losses, row_of = token_losses(base, rows, contributions)
    own = torch.tensor([row.adapter == variant for row in rows])[row_of]
    # The other adapters' losses are part of the same backward pass.
    (losses[own].mean() + losses[~own].sum()).backward()

    twin, pairs = peft_twin(plain_model(architecture), base, adapters[variant])
    mine = [row for row in rows if row.adapter == variant]
    longest = max(len(row.ids) for row in mine)
    ids = torch.zeros(len(mine), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(mine):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        labels[index, : len(row.ids)] = torch.where(
            torch.tensor(row.learned), torch.tensor(row.ids), -100
        )
        mask[index, : len(row.ids)] = 1
    logits = twin(input_ids=ids, attention_mask=mask).logits[:, -longest:]
    theirs = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    theirs.backward()
    torch.testing.assert_close(losses[own].mean(), theirs, atol=1e-5, rtol=0)
    for their, our in pairs.items():
        assert our.grad is not None
        scale = their.grad.abs().max()
        torch.testing.assert_close(our.grad, their.grad, atol=float(1e-4 * scale) + 1e-9, rtol=0)
