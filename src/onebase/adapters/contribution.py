"""What an adapter, of whatever method, brings to the forward pass."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from onebase.errors import UsageError
from onebase.language import say


@dataclass(frozen=True)
class LowRank:
    """A delta on one linear layer: `scale * b @ a` (Hu et al. 2021, LoRA, section 4.1).

    `a` is [rank, inputs], `b` [outputs, rank]. `dropout` is the probability with which an input
    of `a` is dropped while training, drawn from `draw`. With a `factor`, [outputs], the layer's weight and the delta
    are multiplied by it, row by row (DoRA).
    """

    a: Tensor
    b: Tensor
    scale: float
    dropout: float = 0.0
    draw: int = 0
    factor: Tensor | None = None


@dataclass(frozen=True)
class Scaling:
    """A vector that multiplies what a linear layer takes in (`on_inputs`) or its product (IA3)."""

    vector: Tensor
    on_inputs: bool


@dataclass(frozen=True)
class Contribution:
    """Several things at once, each of which an adapter may have or not.

    `deltas` maps full names of linear layers to low-rank deltas, `scalings` to vectors; `virtual`
    holds the embeddings of tokens placed before the text, `placed` of tokens at marked places in
    it, both [tokens, hidden]; `prefix` the keys and values that every layer attends to besides
    its own, each [layers, kv_heads, tokens, head_dim]. `masked_prefix` says for each layer how many of
    the prefix's first tokens it does not attend to; empty, all layers attend to all of them. They
    have their positions all the same.
    """

    deltas: Mapping[str, LowRank] = field(default_factory=dict)
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    virtual: Tensor | None = None
    placed: Tensor | None = None
    prefix: tuple[Tensor, Tensor] | None = None
    masked_prefix: tuple[int, ...] = ()

    @property
    def prefix_tokens(self) -> int:
        """How many positions the KV prefix takes."""
        return 0 if self.prefix is None else self.prefix[0].shape[2]

    @property
    def virtual_tokens(self) -> int:
        """How many virtual tokens stand before the text."""
        return 0 if self.virtual is None else self.virtual.shape[0]

    @property
    def bytes(self) -> int:
        """The memory that its tensors take."""
        tensors = [self.virtual, self.placed, *(self.prefix or ())]
        for delta in self.deltas.values():
            tensors += [delta.a, delta.b, delta.factor]
        tensors += [scaling.vector for scaling in self.scalings.values()]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def digest(self) -> str:
        """A hash of all of its content, in hexadecimal digits."""
        digest = hashlib.sha256()

        def add(what: object, *tensors: Tensor | None) -> None:
            digest.update(repr(what).encode())
            for tensor in tensors:
                if tensor is None:
                    digest.update(b"-")
                    continue
                whole = tensor.detach().cpu().contiguous()
                digest.update(f"{whole.dtype}{tuple(whole.shape)}".encode())
                digest.update(whole.view(-1).view(torch.uint8).numpy().data)

        for name, delta in sorted(self.deltas.items()):
            add((name, delta.scale), delta.a, delta.b, delta.factor)
        for name, scaling in sorted(self.scalings.items()):
            add((name, scaling.on_inputs), scaling.vector)
        add(self.masked_prefix, self.virtual, self.placed, *(self.prefix or ()))
        return digest.hexdigest()


NOTHING = Contribution()


def merged(contributions: Sequence[Contribution]) -> Contribution:
    """Several contributions as one: their prefixes one behind the other, each as it was made alone;
    low-rank deltas of a layer added up; scalings of a layer multiplied.

    Virtual tokens before the text have to be compiled first. Raises UsageError for contributions
    that can't be combined.
    """
    if len(contributions) == 1:
        return contributions[0]
    require_combinable(contributions)
    scalings: dict[str, Scaling] = {}
    for own in contributions:
        for name, scaling in own.scalings.items():
            if name in scalings:
                product = scalings[name].vector * scaling.vector
                scalings[name] = replace(scaling, vector=product)
            else:
                scalings[name] = scaling
    prefixes = [own.prefix for own in contributions if own.prefix is not None]
    return Contribution(
        deltas={
            name: _added([own.deltas[name] for own in contributions if name in own.deltas])
            for name in dict.fromkeys(name for own in contributions for name in own.deltas)
        },
        scalings=scalings,
        placed=next((own.placed for own in contributions if own.placed is not None), None),
        prefix=(
            torch.cat([keys for keys, _ in prefixes], 2),
            torch.cat([values for _, values in prefixes], 2),
        )
        if prefixes
        else None,
        masked_prefix=_unseen(contributions) or (),
    )


def require_combinable(contributions: Sequence[Contribution]) -> None:
    """Raise UsageError where `merged` can't make one of these contributions."""
    reasons = {
        say(
            "both place virtual tokens inside the text",
            "两者都在文本中放置虚拟词元",
        ): sum(own.placed is not None for own in contributions) > 1,
        say(
            "both change a layer, and one of them by DoRA, which scales the other's change too",
            "两者改动同一层，且其中之一为 DoRA，会把另一方的改动一并缩放",
        ): any(
            len(deltas) > 1 and any(delta.factor is not None for delta in deltas)
            for deltas in _deltas_by_layer(contributions)
        ),
        say(
            "both scale a layer, one its inputs and one its outputs",
            "两者缩放同一层，一个作用于输入，一个作用于输出",
        ): any(
            len({own.scalings[name].on_inputs for own in contributions if name in own.scalings}) > 1
            for name in {name for own in contributions for name in own.scalings}
        ),
        say(
            "the second has a prefix on some layers alone",
            "后者的前缀只作用于部分层",
        ): _unseen(contributions) is None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(
                say(
                    f"These adapters can't answer together: {reason}.",
                    f"这些适配器不能同时作答：{reason}。",
                ),
                say("Ask one of them alone.", "请只使用其中一个。"),
            )


def _deltas_by_layer(contributions: Sequence[Contribution]) -> list[list[LowRank]]:
    names = {name for own in contributions for name in own.deltas}
    return [[own.deltas[name] for own in contributions if name in own.deltas] for name in names]


def _added(deltas: Sequence[LowRank]) -> LowRank:
    """The sum of some deltas of one layer: their ranks side by side."""
    if len(deltas) == 1:
        return deltas[0]
    return LowRank(
        a=torch.cat([delta.a for delta in deltas], 0),
        b=torch.cat([delta.scale * delta.b for delta in deltas], 1),
        scale=1.0,
    )


def _unseen(contributions: Sequence[Contribution]) -> tuple[int, ...] | None:
    """How many of all prefixes' first tokens each layer does not attend to; None where these are
    not the first: it attends to some of a prefix that stands before them.
    """
    layers = max(len(own.masked_prefix) for own in contributions)
    masked_prefix, before = [0] * layers, 0
    for own in contributions:
        for layer, count in enumerate(own.masked_prefix):
            if count and masked_prefix[layer] < before:
                return None
            masked_prefix[layer] += count
        before += own.prefix_tokens
    return tuple(masked_prefix)
