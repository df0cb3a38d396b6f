"""The forward pass of the frozen base over a packed row, every segment with its own adapter.

Training, scoring, prefill and decoding all call `run`. The model's code is not rewritten: the
packed row enters as embeddings with positions, the attention function asks the pass which tokens
attend to which, and the linear layers ask it for the adapters' changes.
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
    """For every label, `at` is the index of the output row that predicts it, and `target` its token,
    both [labels]. Logits are divided by `temperature` first.
    """

    at: Tensor
    target: Tensor
    temperature: float = 1.0


@dataclass(frozen=True)
class PassOutput:
    """The results of one pass: `losses` (nats) and `entropies` (nats, without gradient; empty unless
    requested), both [labels]; `states`, the inputs of the language-model head at the requested
    rows, [states, hidden].
    """

    losses: Tensor
    entropies: Tensor
    states: Tensor


@dataclass(frozen=True)
class Pass:
    """The context of one call of the model. With `checkpointing`, a decoder layer stores only its
    input and is computed again in the backward pass (Chen et al. 2016).

    Only the decoder layers from `first` up to but not including `last` (None: to the end) are
    computed. The model is given the input of layer `first`; the input of layer `last` is appended
    to `reached`. With `labels`, the head appends their losses to `losses`, fills `entropies` if
    there is such a tensor, and computes no logits. The head's inputs at the output rows
    `hidden_states_at` are appended to `states`. `decoding`: one token per sequence of a batch.
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
    """The pass that is being computed. Every decoder layer sets it on entry, so that a layer that is
    recomputed in the backward pass finds the right one.
    """

    value: Pass | None = None


_prepared: "WeakKeyDictionary[nn.Module, _Current]" = WeakKeyDictionary()
_linears: "WeakKeyDictionary[nn.Module, dict[str, Linear]]" = WeakKeyDictionary()
_refused: "WeakKeyDictionary[nn.Module, OnebaseError]" = WeakKeyDictionary()


# The model types that are tested against transformers' forward pass; any other is checked on a sample.
TESTED_TYPES = {"llama", "mistral", "qwen2", "qwen3", "gemma3_text", "glm", "glm4", "phi3"}
_FAILURES = (
    *(TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError),
    *(NotImplementedError, AssertionError),
)


def prepare(base: Base) -> None:
    """Install our attention in the base's model and the deltas in its linear layers. Does nothing
    when called again.

    Raises OnebaseError for a model type outside TESTED_TYPES whose packed pass differs from the
    model's own.
    """
    if base.model in _refused:
        raise _refused[base.model]
    if base.model in _prepared:
        return
    if base.model.config.model_type in TESTED_TYPES:
        _attach(base)
        return
    try:
        ids = _sample(base)
        with torch.inference_mode():
            expected = base.model(input_ids=torch.tensor([ids], device=base.device)).logits[0]
        _attach(base)
        error = float((_packed_logits(base, ids) - expected).abs().max() / expected.abs().max())
        reason = say(f"its logits differ by {error:.1e}", f"其 logits 相差 {error:.1e}")
    except _FAILURES as failure:
        error, reason = math.inf, f"{type(failure).__name__}: {str(failure)[:200]}"
    tolerance = 1e-3 if base.precision.compute == torch.float32 else 5e-2
    if not error <= tolerance:
        kind = base.model.config.model_type
        _refused[base.model] = OnebaseError(
            say(
                f"{base.name} is of type {kind}, whose layers can't be shared by adapters ({reason}).",
                f"{base.name} 的类型为 {kind}，其层无法由多个适配器共用（{reason}）。",
            ),
            say(
                f"Use a base of one of these types: {', '.join(sorted(TESTED_TYPES))}.",
                f"请使用以下类型的基座：{'、'.join(sorted(TESTED_TYPES))}。",
            ),
        )
        raise _refused[base.model]


def _sample(base: Base) -> list[int]:
    """A text of 24 random tokens, the same for every base with this vocabulary."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, base.shape.vocabulary, (24,), generator=generator).tolist()


def _packed_logits(base: Base, ids: list[int]) -> Tensor:
    """The logits of `ids` in a pack with other segments, its first tokens turned into a KV prefix."""
    with torch.inference_mode():
        embedded = base.embedding(torch.tensor(ids[:7], device=base.device))
        prompt_pack = Pack({"prompt": Contribution(virtual=embedded)})
        node = prompt_pack.virtual_node("prompt")
        assert node is not None
        prefix = node_kv(base, prompt_pack, node)
        shapes = [tuple(part.shape[1::2]) for part in prefix]  # must fit the KV cache
        if shapes != [(base.shape.kv_heads, base.shape.head_dim)] * 2:
            raise ValueError(f"keys and values are {shapes[0]} and {shapes[1]} for each token")
        pack = Pack({"prefix": Contribution(prefix=prefix)})
        pack.add(None, ids[3:11])
        rest = pack.nodes[pack.add("prefix", ids[7:])]
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
    for linear in linears(base).values():
        layer: Any = linear.layer
        layer.forward = _linear_forward(linear, current)
    for module in base.model.modules():
        if (norm_forward := quick_norm(module)) is not None:
            module.forward = norm_forward
    _prepared[base.model] = current


def _layer_forward(
    index: int, forward: Callable[..., Any], current: _Current
) -> Callable[..., Any]:
    """A decoder layer's `forward` that sets the current pass, and is checkpointed if the pass asks
    for it. (transformers' own checkpointing leaves out the layer's hooks when it recomputes.)
    """

    def compute(*args: Any, **kwargs: Any) -> Any:
        current.value = kwargs.get("onebase_pass")
        return forward(*args, **kwargs)

    def layer_forward(*args: Any, **kwargs: Any) -> Any:
        context: Pass | None = kwargs.get("onebase_pass")
        if context is not None and context.skips(index):
            entering = args[0] if args else kwargs["hidden_states"]
            if index == context.last:
                context.reached.append(entering[0])
            return entering
        if context is not None and context.checkpointing and torch.is_grad_enabled():
            return checkpoint(compute, *args, use_reentrant=False, **kwargs)
        return compute(*args, **kwargs)

    return layer_forward


def _head_forward(head: Linear, current: _Current) -> Callable[..., Any]:
    """The language-model head's `forward`, which computes the losses in a pass with labels."""

    def head_forward(hidden: Tensor) -> Any:
        context = current.value
        if context is not None and context.hidden_states_at is not None:
            rows = hidden.flatten(0, -2)
            context.states.append(rows.index_select(0, context.hidden_states_at))
        if context is None or context.labels is None:
            return head.base_output(hidden, decoding=context is not None and context.decoding)
        labels = context.labels
        predicting = hidden.flatten(0, -2).index_select(0, labels.at)
        if labels.temperature != 1:
            predicting = predicting / labels.temperature  # the head is linear
        context.losses.append(
            head_losses(predicting, head.layer.weight, labels.target, entropies=context.entropies)
        )
        return hidden.new_zeros(*hidden.shape[:-1], 1)

    return head_forward


def _linear_forward(linear: Linear, current: _Current) -> Callable[[Tensor], Tensor]:
    """A linear layer's `forward`, with the changes of the pass's adapters."""

    def linear_forward(input: Tensor) -> Tensor:
        context = current.value
        if context is None or context.deltas is None:
            return linear.base_output(input, decoding=context is not None and context.decoding)
        return context.deltas.output(linear, input)

    return linear_forward


def linears(base: Base) -> dict[str, Linear]:
    """The base's linear layers that adapters may change, by name, with their original forwards."""
    if base.model not in _linears:
        _linears[base.model] = linears_of(base.model, base.shape.linears)
    return _linears[base.model]


def run(base: Base, embeddings: Tensor, positions: Tensor, context: Pass, keep: Tensor) -> Tensor:
    """The logits of the tokens `keep` of one packed row.

    `embeddings` is [tokens, hidden], `positions` [tokens], `keep` [kept]; returns
    [kept, vocabulary]. Only the kept tokens go through the language-model head.
    """
    prepare(base)
    output = base.model(
        inputs_embeds=embeddings[None],
        position_ids=positions[None].to(embeddings.device),
        use_cache=False,
        logits_to_keep=keep.to(embeddings.device),
        onebase_pass=context,
    )
    _prepared[base.model].value = None  # so that the pass and its adapters can be freed
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
    """The logits of the tokens `keep` of a pack, [kept, vocabulary]. Differentiable in every
    contribution of the pack. With `entering`, [tokens, hidden], the pass begins at layer `first`.
    """
    attention = attention or PackedAttention(pack, base.device)
    context = Pass(attention, _deltas(base, pack), checkpointing, first)
    if entering is None:
        entering = pack.embeddings(base.embedding)
    return run(base, entering, pack.positions(), context, keep)


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
    """The losses of the labels that the tokens `keep` of a pack predict, their entropies if
    `entropies` is set, and the hidden states at the kept tokens `hidden_states_at`. Otherwise as
    `run_pack`.
    """
    labels = Labels(labels.at.to(base.device), labels.target.to(base.device), labels.temperature)
    hidden_states_at = hidden_states_at.to(base.device)
    if entering is None:
        entering = pack.embeddings(base.embedding)
    fused = _fused_head(base)
    label_entropies = torch.empty(len(labels.at) if entropies else 0, device=base.device)
    context = Pass(
        PackedAttention(pack, base.device),
        _deltas(base, pack),
        checkpointing,
        first,
        labels=labels if fused else None,
        entropies=label_entropies if fused and entropies else None,
        hidden_states_at=hidden_states_at if len(hidden_states_at) else None,
    )
    logits = run(base, entering, pack.positions(), context, keep)
    states = context.states[0] if context.states else entering.new_empty(0, base.shape.hidden)
    if fused:
        return PassOutput(context.losses[0], label_entropies, states)
    label_logits = logits.index_select(0, labels.at).float() / labels.temperature
    if entropies:
        with torch.no_grad():
            label_entropies = torch.special.entr(label_logits.softmax(-1)).sum(-1)
    losses = cross_entropy(label_logits, labels.target, reduction="none")
    return PassOutput(losses, label_entropies, states)


def _deltas(base: Base, pack: Pack) -> Deltas | None:
    stacks = Stacks(pack.contributions, pack.adapters)
    return Deltas(stacks, pack.owners().to(base.device), linears(base)) if stacks else None


_heads: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def _fused_head(base: Base) -> bool:
    """Whether `head_losses` may replace the head: it must be a frozen linear layer, and the model
    must not change the logits afterwards, which is checked once for each base.
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
            context = Pass(PackedAttention(pack, base.device), None, labels=labels)
            run(base, pack.embeddings(base.embedding), pack.positions(), context, keep)
            expected = cross_entropy(logits.float(), target, reduction="none")
            error = float((context.losses[0] - expected).abs().max())
        _heads[base.model] = error <= (1e-4 if logits.dtype == torch.float32 else 5e-2)
    return _heads[base.model]


def run_below(base: Base, pack: Pack, layer: int) -> Tensor:
    """The input of decoder layer `layer` for every token of a pack of bare rows, [tokens, hidden]."""
    context = Pass(PackedAttention(pack, base.device), None, last=layer)
    no_rows = torch.tensor([], dtype=torch.long)  # the head is not needed
    run(base, pack.embeddings(base.embedding), pack.positions(), context, no_rows)
    return context.reached[0]


def node_kv(base: Base, pack: Pack, node: int) -> tuple[Tensor, Tensor]:
    """The keys and values of a node's tokens in every layer, each [layers, kv_heads, tokens,
    head_dim]. Later tokens need nothing else to attend to them.
    """
    attention = PackedAttention(pack, base.device)
    captured = attention.capture()
    with torch.no_grad():
        no_rows = torch.tensor([], dtype=torch.long)  # the head is not needed
        run_pack(base, pack, no_rows, attention=attention)
    start, length = pack.nodes[node].start, pack.nodes[node].length
    rows = slice(start, start + length)
    keys = torch.stack([captured[layer][0][rows] for layer in sorted(captured)])
    values = torch.stack([captured[layer][1][rows] for layer in sorted(captured)])
    return keys.transpose(1, 2).contiguous(), values.transpose(1, 2).contiguous()
