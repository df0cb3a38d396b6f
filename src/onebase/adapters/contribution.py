"""What an adapter, of whatever method, brings to the forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


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
    its own, each [layers, kv_heads, tokens, head_dim]. `unseen` says for each layer how many of
    the prefix's first tokens it does not attend to; empty, all layers attend to all of them. They
    have their positions all the same.
    """

    deltas: Mapping[str, LowRank] = field(default_factory=dict)
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    virtual: Tensor | None = None
    placed: Tensor | None = None
    prefix: tuple[Tensor, Tensor] | None = None
    unseen: tuple[int, ...] = ()

    @property
    def prefix_tokens(self) -> int:
        """How many positions the KV prefix takes."""
        return 0 if self.prefix is None else self.prefix[0].shape[2]

    @property
    def virtual_tokens(self) -> int:
        """How many virtual tokens stand before the text."""
        return 0 if self.virtual is None else self.virtual.shape[0]


NOTHING = Contribution()
