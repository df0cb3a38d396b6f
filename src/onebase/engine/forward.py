"""The one pass: the frozen base over a packed row, every segment with its own adapter.

Training, scoring, prefill and decoding all call `run`. Nothing of the base's code is rewritten:
the packed row enters as embeddings with positions, an attention function asks the pass who
attends to whom, and the linear layers ask it what adapters change.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from onebase.adapters.contribution import Contribution
from onebase.engine.attention import ATTENTION, Attention, PackedAttention, attention_function
from onebase.engine.deltas import Deltas, Stacks
from onebase.engine.head import head_losses, is_frozen_linear
from onebase.engine.linear import Linear, linears_of
from onebase.engine.norm import quick_norm
from onebase.engine.pack import Pack
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.model.base import Base


@dataclass(frozen=True)
class Labels:
    """For every label `at`, the kept row that predicts it, and its `target` token, both [labels].
    Logits are divided by `temperature` first.
    """

    at: Tensor
    target: Tensor
    temperature: float = 1.0


@dataclass(frozen=True)
class PassOutput:
    """What one pass says of its labels and rows: `losses` (nats) and `entropies` (nats, without
    gradient; empty unless asked for), both [labels]; `states`, what enters the language-model head
    at the rows asked for, [states, hidden].
    """

    losses: Tensor
    entropies: Tensor
    states: Tensor


@dataclass(frozen=True)
class Pass:
    """What rides along with one call of the model. With `checkpointing` a decoder layer keeps its
    input alone and is computed again in the backward pass (Chen et al. 2016).

    Only the decoder layers from `first` up to `last` (None: all the rest) are computed: what
    enters layer `first` is what the model is given, and what would enter layer `last` goes into
    `reached`. With `labels` the head computes their losses, into `losses`, and no logits; and
    their entropies, where there is a tensor for them. What enters the head at the kept rows
    `hidden_states_at` goes into `states`. `decoding` says that it is a token for each sequence of a batch.
    """

    attention: Attention
    deltas: Deltas | None
    checkpointing: bool = False
    first: int = 0
    last: int | None = None
    reached: list[Tensor] = field(default_factory=list)
    labels: Labels | None = None
    losses: list[Tensor] = field(default_factory=list)
    entropies: Tensor | None = None
    hidden_states_at: Tensor | None = None
    states: list[Tensor] = field(default_factory=list)
    decoding: bool = False

    def skips(self, layer: int) -> bool:
        """Whether `layer` is not computed."""
        return layer < self.first or (self.last is not None and layer >= self.last)


class _Current:
    """The pass whose layers are being computed; set at the entry of every decoder layer, so that
    a layer that is computed again finds its own.
    """

    value: Pass | None = None


_prepared: "WeakKeyDictionary[nn.Module, _Current]" = WeakKeyDictionary()
_linears: "WeakKeyDictionary[nn.Module, dict[str, Linear]]" = WeakKeyDictionary()
_refused: "WeakKeyDictionary[nn.Module, OnebaseError]" = WeakKeyDictionary()


# The families that the tests hold against the libraries' own passes; any other is tried first.
PROVEN = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text", "glm", "glm4", "phi3"}
_REFUSALS = (
    *(TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError),
    *(NotImplementedError, AssertionError),
)


def prepare(base: Base) -> None:
    """Give the base's model our attention and its linear layers the deltas; once, then it's a no-op.

    Raises OnebaseError for an architecture that is not PROVEN and whose pass is not that of the
    model itself.
    """
    if base.model in _refused:
        raise _refused[base.model]
    if base.model in _prepared:
        return
    if base.model.config.model_type in PROVEN:
        _attach(base)
        return
    try:
        ids = _sample(base)
        with torch.inference_mode():
            expected = base.model(input_ids=torch.tensor([ids], device=base.device)).logits[0]
        _attach(base)
        error = float((_by_parts(base, ids) - expected).abs().max() / expected.abs().max())
        reason = say(f"its logits differ by {error:.1e}", f"其 logits 相差 {error:.1e}")
    except _REFUSALS as refusal:
        error, reason = math.inf, f"{type(refusal).__name__}: {str(refusal)[:200]}"
    tolerance = 1e-3 if base.precision.compute == torch.float32 else 5e-2
    if not error <= tolerance:
        kind = base.model.config.model_type
        _refused[base.model] = OnebaseError(
            say(
                f"{base.name} is of type {kind}, whose layers can't be shared by adapters ({reason}).",
                f"{base.name} 的类型为 {kind}，其层无法由多个适配器共用（{reason}）。",
            ),
            say(
                f"Use a base of one of these types: {', '.join(sorted(PROVEN))}.",
                f"请使用以下类型的基座：{'、'.join(sorted(PROVEN))}。",
            ),
        )
        raise _refused[base.model]


def _sample(base: Base) -> list[int]:
    """A text of 24 tokens, the same for every base with this vocabulary."""
    drawn = torch.Generator().manual_seed(0)
    return torch.randint(0, base.shape.vocabulary, (24,), generator=drawn).tolist()


def _by_parts(base: Base, ids: list[int]) -> Tensor:
    """The logits of `ids` with its first tokens compiled to a KV prefix, beside other segments."""
    with torch.inference_mode():
        begun = base.embedding(torch.tensor(ids[:7], device=base.device))
        whole = Pack({"whole": Contribution(virtual=begun)})
        node = whole.virtual_node("whole")
        assert node is not None
        prefix = compile_virtual(base, whole, node)
        kept = [tuple(part.shape[1::2]) for part in prefix]  # as a KV cache has room for
        if kept != [(base.shape.kv_heads, base.shape.head_dim)] * 2:
            raise ValueError(f"keys and values are {kept[0]} and {kept[1]} for each token")
        pack = Pack({"compiled": Contribution(prefix=prefix)})
        pack.add(None, ids[3:11])
        rest = pack.nodes[pack.add("compiled", ids[7:])]
        first = pack.nodes[pack.add(None, ids[:7])]
        rows = torch.cat([torch.arange(n.start, n.start + n.length) for n in (first, rest)])
        return run_pack(base, pack, rows)


def _attach(base: Base) -> None:
    from transformers import AttentionInterface  # late, as in read_model

    AttentionInterface.register(ATTENTION, attention_function)
    base.model.set_attn_implementation(ATTENTION)
    current = _Current()
    for index, decoder in enumerate(base.layers):
        decoder.forward = _layer_forward(index, decoder.forward, current)
    head = base.model.get_output_embeddings()
    head.forward = _head_forward(Linear("head", head, head.forward, ()), current)
    for own in linears(base).values():
        layer: Any = own.layer
        layer.forward = _linear_forward(own, current)
    for module in base.model.modules():
        if (quick := quick_norm(module)) is not None:
            module.forward = quick
    _prepared[base.model] = current


def _layer_forward(
    index: int, forward: Callable[..., Any], current: _Current
) -> Callable[..., Any]:
    """A decoder layer's `forward` that says whose pass it is in, and is checkpointed if that asks
    for it. (transformers' own checkpointing leaves the layer's hooks out when it recomputes.)
    """

    def computed(*args: Any, **kwargs: Any) -> Any:
        current.value = kwargs.get("onebase_pass")
        return forward(*args, **kwargs)

    def entered(*args: Any, **kwargs: Any) -> Any:
        now: Pass | None = kwargs.get("onebase_pass")
        if now is not None and now.skips(index):
            entering = args[0] if args else kwargs["hidden_states"]
            if index == now.last:
                now.reached.append(entering[0])
            return entering
        if now is not None and now.checkpointing and torch.is_grad_enabled():
            return checkpoint(computed, *args, use_reentrant=False, **kwargs)
        return computed(*args, **kwargs)

    return entered


def _head_forward(own: Linear, current: _Current) -> Callable[..., Any]:
    """The language-model head's `forward`, which in a pass with labels computes their losses."""

    def entered(hidden: Tensor) -> Any:
        now = current.value
        if now is not None and now.hidden_states_at is not None:
            now.states.append(hidden.flatten(0, -2).index_select(0, now.hidden_states_at))
        if now is None or now.labels is None:
            return own.plainly(hidden, decoding=now is not None and now.decoding)
        kept = hidden.flatten(0, -2).index_select(0, now.labels.at)
        if now.labels.temperature != 1:
            kept = kept / now.labels.temperature  # the head is linear
        losses = head_losses(kept, own.layer.weight, now.labels.target, entropies=now.entropies)
        now.losses.append(losses)
        return hidden.new_zeros(*hidden.shape[:-1], 1)

    return entered


def _linear_forward(own: Linear, current: _Current) -> Callable[[Tensor], Tensor]:
    """A linear layer's `forward`, with what the adapters of the pass change."""

    def entered(input: Tensor) -> Tensor:
        now = current.value
        if now is None or now.deltas is None:
            return own.plainly(input, decoding=now is not None and now.decoding)
        return now.deltas.output(own, input)

    return entered


def linears(base: Base) -> dict[str, Linear]:
    """The base's linear layers that adapters may change, by name, as they are without adapters."""
    if base.model not in _linears:
        _linears[base.model] = linears_of(base.model, base.shape.linears)
    return _linears[base.model]


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
    _prepared[base.model].value = None  # or the pass, and its adapters, would stay in memory
    logits: Tensor = output.logits[0]
    return logits


def run_pack(
    base: Base,
    pack: Pack,
    keep: Tensor,
    *,
    attention: PackedAttention | None = None,
    checkpointing: bool = False,
    first: int = 0,
    entering: Tensor | None = None,
) -> Tensor:
    """Logits of the rows `keep` of a pack, [kept, vocabulary]. Differentiable in every
    contribution of the pack. With `entering`, [tokens, hidden], the pass begins at layer `first`.
    """
    attention = attention or PackedAttention(pack, base.device)
    now = Pass(attention, _deltas(base, pack), checkpointing, first)
    if entering is None:
        entering = pack.embeddings(base.embedding)
    return run(base, entering, pack.positions(), now, keep)


def read_pack(
    base: Base,
    pack: Pack,
    keep: Tensor,
    labels: Labels,
    hidden_states_at: Tensor,
    *,
    entropies: bool = False,
    checkpointing: bool = False,
    first: int = 0,
    entering: Tensor | None = None,
) -> PassOutput:
    """The loss of every label that the rows `keep` of a pack predict, with `entropies` their
    entropies too, and the states of the kept rows `hidden_states_at`; else as `run_pack`.
    """
    labels = Labels(labels.at.to(base.device), labels.target.to(base.device), labels.temperature)
    hidden_states_at = hidden_states_at.to(base.device)
    if entering is None:
        entering = pack.embeddings(base.embedding)
    fused = _fused_head(base)
    seen = torch.empty(len(labels.at) if entropies else 0, device=base.device)
    now = Pass(
        PackedAttention(pack, base.device),
        _deltas(base, pack),
        checkpointing,
        first,
        labels=labels if fused else None,
        entropies=seen if fused and entropies else None,
        hidden_states_at=hidden_states_at if len(hidden_states_at) else None,
    )
    logits = run(base, entering, pack.positions(), now, keep)
    states = now.states[0] if now.states else entering.new_empty(0, base.shape.hidden)
    if fused:
        return PassOutput(now.losses[0], seen, states)
    own = logits.index_select(0, labels.at).float() / labels.temperature
    if entropies:
        with torch.no_grad():
            seen = torch.special.entr(own.softmax(-1)).sum(-1)
    return PassOutput(cross_entropy(own, labels.target, reduction="none"), seen, states)


def _deltas(base: Base, pack: Pack) -> Deltas | None:
    stacks = Stacks(pack.contributions, pack.adapters)
    return Deltas(stacks, pack.owners().to(base.device), linears(base)) if stacks else None


_heads: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def _fused_head(base: Base) -> bool:
    """Whether the head may compute losses itself: it is a frozen linear layer and the last thing
    that happens to logits, which is tried once for each base.
    """
    if not is_frozen_linear(base.model.get_output_embeddings()):
        return False
    if base.model not in _heads:
        ids = _sample(base)
        pack = Pack({})
        pack.add(None, ids)
        keep = torch.arange(len(ids) - 1)
        target = torch.tensor(ids[1:], device=base.device)
        with torch.no_grad():
            logits = run_pack(base, pack, keep)
            labels = Labels(keep.to(base.device), target)
            now = Pass(PackedAttention(pack, base.device), None, labels=labels)
            run(base, pack.embeddings(base.embedding), pack.positions(), now, keep)
            expected = cross_entropy(logits.float(), target, reduction="none")
            error = float((now.losses[0] - expected).abs().max())
        _heads[base.model] = error <= (1e-4 if logits.dtype == torch.float32 else 5e-2)
    return _heads[base.model]


def run_below(base: Base, pack: Pack, layer: int) -> Tensor:
    """What enters decoder layer `layer` for every token of a pack of bare rows, [tokens, hidden]."""
    now = Pass(PackedAttention(pack, base.device), None, last=layer)
    nothing = torch.tensor([], dtype=torch.long)  # no row needs the head
    run(base, pack.embeddings(base.embedding), pack.positions(), now, nothing)
    return now.reached[0]


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
