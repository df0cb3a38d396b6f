"""The one pass: the frozen base over a packed row, every segment with its own adapter.

Training, scoring, prefill and decoding all call `run`. Nothing of the base's code is rewritten:
the packed row enters as embeddings with positions, an attention function asks the pass who
attends to whom, and hooks on the linear layers add the low-rank deltas.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onebase.engine.attention import ATTENTION, Attention, PackedAttention
from onebase.engine.deltas import Deltas, Stacks
from onebase.engine.pack import Pack
from onebase.model.base import Base


@dataclass(frozen=True)
class Pass:
    """What rides along with one call of the model. With `checkpointing` a decoder layer keeps its
    input alone and is computed again in the backward pass (Chen et al. 2016).
    """

    attention: Attention
    deltas: Deltas | None
    checkpointing: bool = False


class _Current:
    """The pass whose layers are being computed; set at the entry of every decoder layer, so that
    a layer that is computed again finds its own.
    """

    value: Pass | None = None


_prepared: "WeakSet[nn.Module]" = WeakSet()


def prepare(base: Base) -> None:
    """Give the base's model our attention and the hooks for deltas; once, then it's a no-op."""
    if base.model in _prepared:
        return
    base.model.set_attn_implementation(ATTENTION)
    current = _Current()
    for layer in base.layers:
        layer.forward = _layer_forward(layer.forward, current)
    for name, module in base.model.named_modules():
        if name in base.shape.linears:
            module.register_forward_pre_hook(_entry_hook(name, current))
            module.register_forward_hook(_exit_hook(name, current))
    _prepared.add(base.model)


def _layer_forward(forward: Callable[..., Any], current: _Current) -> Callable[..., Any]:
    """A decoder layer's `forward` that says whose pass it is in, and is checkpointed if that asks
    for it. (transformers' own checkpointing leaves the layer's hooks out when it recomputes.)
    """

    def computed(*args: Any, **kwargs: Any) -> Any:
        current.value = kwargs.get("onebase_pass")
        return forward(*args, **kwargs)

    def entered(*args: Any, **kwargs: Any) -> Any:
        now: Pass | None = kwargs.get("onebase_pass")
        if now is not None and now.checkpointing and torch.is_grad_enabled():
            return checkpoint(computed, *args, use_reentrant=False, **kwargs)
        return computed(*args, **kwargs)

    return entered


def _entry_hook(name: str, current: _Current) -> Any:
    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        now = current.value
        if now is None or now.deltas is None:
            return None
        return (now.deltas.enter(name, args[0]), *args[1:])

    return enter


def _exit_hook(name: str, current: _Current) -> Any:
    def leave(layer: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        now = current.value
        if now is None or now.deltas is None:
            return None
        return now.deltas.leave(name, layer, args[0], output)

    return leave


def run(base: Base, embeddings: Tensor, positions: Tensor, now: Pass, keep: Tensor) -> Tensor:
    """Logits of the rows `keep` of one packed row.

    `embeddings` is [tokens, hidden], `positions` [tokens], `keep` [kept]; returns
    [kept, vocabulary]. Only the kept rows go through the language-model head.
    """
    prepare(base)
    output = base.model(
        inputs_embeds=embeddings[None],
        position_ids=positions[None].to(embeddings.device),
        use_cache=False,
        logits_to_keep=keep.to(embeddings.device),
        onebase_pass=now,
    )
    logits: Tensor = output.logits[0]
    return logits


def run_pack(
    base: Base,
    pack: Pack,
    keep: Tensor,
    *,
    attention: PackedAttention | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """Logits of the rows `keep` of a pack, [kept, vocabulary]. Differentiable in every
    contribution of the pack.
    """
    attention = attention or PackedAttention(pack, base.device)
    stacks = Stacks(pack.contributions, pack.adapters)
    deltas = Deltas(stacks, pack.owners().to(base.device)) if stacks else None
    embeddings = pack.embeddings(base.embedding)
    now = Pass(attention, deltas, checkpointing)
    return run(base, embeddings, pack.positions(), now, keep)


def compile_virtual(base: Base, pack: Pack, node: int) -> tuple[Tensor, Tensor]:
    """Keys and values of a node's tokens in every layer, each [layers, kv_heads, tokens,
    head_dim]: what later text needs to see of them.
    """
    attention = PackedAttention(pack, base.device)
    captured = attention.capture()
    with torch.no_grad():
        nothing = torch.tensor([], dtype=torch.long)  # no row needs the head
        run_pack(base, pack, nothing, attention=attention)
    start, length = pack.nodes[node].start, pack.nodes[node].length
    rows = slice(start, start + length)
    keys = torch.stack([captured[layer][0][rows] for layer in sorted(captured)])
    values = torch.stack([captured[layer][1][rows] for layer in sorted(captured)])
    return keys.transpose(1, 2).contiguous(), values.transpose(1, 2).contiguous()
