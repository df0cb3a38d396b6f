"""What an adapter of any method adds to the forward pass."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from onebase.errors import UsageError
from onebase.language import say

Part = TypeVar("Part")


@dataclass(frozen=True)
class LowRank:
    """A delta on one linear layer: `scale * b @ a` (Hu et al. 2021, LoRA, section 4.1).

    `a` is [rank, inputs], `b` is [outputs, rank]. `dropout` is the probability that an input of `a`
    is dropped in training; `draw` seeds the mask. With a `factor`, [outputs], each row of the
    layer's weight and of the delta is multiplied by it (DoRA).
    """

    a: Tensor
    b: Tensor
    scale: float
    dropout: float = 0.0
    draw: int = 0
    factor: Tensor | None = None


@dataclass(frozen=True)
class Scaling:
    """A vector that multiplies the inputs of a linear layer (`on_inputs`) or its outputs (IA3)."""

    vector: Tensor
    on_inputs: bool


@dataclass(frozen=True)
class Contribution:
    """The parts of an adapter that change a pass; each may be missing.

    `deltas` maps full names of linear layers to low-rank deltas, `scalings` to vectors. `virtual`
    holds the embeddings of tokens before the text, `placed` those of tokens at marked places in
    it, both [tokens, hidden]. `prefix` holds the keys and values that every layer attends to besides
    its own, each [layers, kv_heads, tokens, head_dim]. `masked_prefix` is, for each layer, the number
    of the prefix's first tokens that it does not attend to; when empty, all layers attend to all of
    them. Masked tokens keep their positions.
    """

    deltas: Mapping[str, LowRank] = field(default_factory=dict)
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    virtual: Tensor | None = None
    placed: Tensor | None = None
    prefix: tuple[Tensor, Tensor] | None = None
    masked_prefix: tuple[int, ...] = ()

    @property
    def prefix_tokens(self) -> int:
        """The number of positions that the KV prefix takes."""
        return 0 if self.prefix is None else self.prefix[0].shape[2]

    @property
    def virtual_tokens(self) -> int:
        """The number of virtual tokens before the text."""
        return 0 if self.virtual is None else self.virtual.shape[0]

    @property
    def bytes(self) -> int:
        """The size of its tensors in bytes."""
        tensors = [self.virtual, self.placed, *(self.prefix or ())]
        for delta in self.deltas.values():
            tensors += [delta.a, delta.b, delta.factor]
        tensors += [scaling.vector for scaling in self.scalings.values()]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def digest(self) -> str:
        """The SHA-256 of its content, in hexadecimal."""
        digest = hashlib.sha256()

        def add(what: object, *tensors: Tensor | None) -> None:
            digest.update(repr(what).encode())
            for tensor in tensors:
                if tensor is None:
                    digest.update(b"-")
                    continue
                contiguous = tensor.detach().cpu().contiguous()
                digest.update(f"{contiguous.dtype}{tuple(contiguous.shape)}".encode())
                digest.update(contiguous.view(-1).view(torch.uint8).numpy().data)

        for name, delta in sorted(self.deltas.items()):
            add((name, delta.scale), delta.a, delta.b, delta.factor)
        for name, scaling in sorted(self.scalings.items()):
            add((name, scaling.on_inputs), scaling.vector)
        add(self.masked_prefix, self.virtual, self.placed, *(self.prefix or ()))
        return digest.hexdigest()


NOTHING = Contribution()


def merged(contributions: Sequence[Contribution]) -> Contribution:
    """Several contributions as one: prefixes are concatenated, each as computed alone; low-rank
    deltas of a layer are added, scalings of a layer multiplied.

    Virtual tokens before the text must be compiled into a prefix first. Raises UsageError for
    contributions that can't be combined.
    """
    if len(contributions) == 1:
        return contributions[0]
    require_combinable(contributions)
    deltas = _by_layer(one.deltas for one in contributions)
    scalings = _by_layer(one.scalings for one in contributions)
    prefixes = [one.prefix for one in contributions if one.prefix is not None]
    return Contribution(
        deltas={name: _added(parts) for name, parts in deltas.items()},
        scalings={name: reduce(_multiplied, parts) for name, parts in scalings.items()},
        placed=next((one.placed for one in contributions if one.placed is not None), None),
        prefix=(
            torch.cat([keys for keys, _ in prefixes], 2),
            torch.cat([values for _, values in prefixes], 2),
        )
        if prefixes
        else None,
        masked_prefix=_masked_prefix(contributions) or (),
    )


def require_combinable(contributions: Sequence[Contribution]) -> None:
    """Raise UsageError unless `merged` can combine these contributions."""
    deltas = _by_layer(one.deltas for one in contributions)
    scalings = _by_layer(one.scalings for one in contributions)
    reasons = {
        say(
            "both place virtual tokens inside the text",
            "两者都在文本中放置虚拟词元",
        ): sum(one.placed is not None for one in contributions) > 1,
        say(
            "both change the same layer, and one uses DoRA, which would scale the other's delta",
            "两者改动同一层，且其中之一为 DoRA，会连同另一方的增量一起缩放",
        ): any(
            len(parts) > 1 and any(delta.factor is not None for delta in parts)
            for parts in deltas.values()
        ),
        say(
            "both scale the same layer, one its inputs and the other its outputs",
            "两者缩放同一层，一个作用于输入，一个作用于输出",
        ): any(len({part.on_inputs for part in parts}) > 1 for parts in scalings.values()),
        say(
            "the second has a prefix on some layers only",
            "后者的前缀只作用于部分层",
        ): _masked_prefix(contributions) is None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UsageError(
                say(
                    f"These adapters can't be combined: {reason}.",
                    f"这些适配器不能组合使用：{reason}。",
                ),
                say("Use only one of them.", "请只使用其中一个。"),
            )


def _by_layer(contributions: Iterable[Mapping[str, Part]]) -> dict[str, list[Part]]:
    """The parts of every layer by its name, in the order of the contributions."""
    parts_of: dict[str, list[Part]] = {}
    for parts in contributions:
        for name, part in parts.items():
            parts_of.setdefault(name, []).append(part)
    return parts_of


def _added(deltas: Sequence[LowRank]) -> LowRank:
    """The sum of a layer's deltas as one delta, their matrices concatenated along the rank."""
    if len(deltas) == 1:
        return deltas[0]
    return LowRank(
        a=torch.cat([delta.a for delta in deltas], 0),
        b=torch.cat([delta.scale * delta.b for delta in deltas], 1),
        scale=1.0,
    )


def _multiplied(one: Scaling, other: Scaling) -> Scaling:
    return replace(other, vector=one.vector * other.vector)


def _masked_prefix(contributions: Sequence[Contribution]) -> tuple[int, ...] | None:
    """For each layer, how many of the first tokens of the joined prefix it does not attend to.

    None where the masked tokens would not be the first: the layer attends to tokens before them.
    """
    layers = max(len(contribution.masked_prefix) for contribution in contributions)
    masked_prefix, before = [0] * layers, 0
    for contribution in contributions:
        for layer, count in enumerate(contribution.masked_prefix):
            if count and masked_prefix[layer] < before:
                return None
            masked_prefix[layer] += count
        before += contribution.prefix_tokens
    return tuple(masked_prefix)
