"""Rows of tokens into packs, and what is asked of them: the loss of every labelled token."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from onebase.adapters.contribution import Contribution
from onebase.engine.forward import Labels, label_losses
from onebase.engine.pack import Pack
from onebase.engine.trunk import Trunk, depth_of
from onebase.model.base import Base


@dataclass(frozen=True)
class TokenRow:
    """One text for one adapter (None: the bare base): its tokens, and which are labels."""

    adapter: str | None
    ids: tuple[int, ...]
    learned: tuple[bool, ...]

    def bare(self) -> "TokenRow":
        """This row for the bare base: without an adapter, and without placed virtual tokens."""
        kept = [index for index, token in enumerate(self.ids) if token >= 0]
        return TokenRow(
            None,
            tuple(self.ids[index] for index in kept),
            tuple(self.learned[index] for index in kept),
        )

    @property
    def labels(self) -> int:
        """How many tokens have a loss; the first token of a text has none to predict it."""
        return sum(self.learned[1:])


@dataclass(frozen=True)
class PlacedRows:
    """A pack of rows: `predict`, the pack's rows whose logits are needed, each once; and for
    every label `at` (an index into `predict`), its `target` token, and the `row` it is of. `nodes`
    has the pack's nodes of every row in order, those that rows share included.
    """

    pack: Pack
    predict: Tensor
    at: Tensor
    target: Tensor
    row: Tensor
    nodes: list[list[int]]


def place(rows: Sequence[TokenRow], contributions: Mapping[str, Contribution]) -> PlacedRows:
    """Put rows into one pack. What all rows of an adapter begin with stands there once."""
    pack = Pack(contributions)
    spots: list[tuple[int, int, int]] = []  # pack row that predicts, target, row
    nodes: list[list[int]] = [[] for _ in rows]
    for adapter in dict.fromkeys(row.adapter for row in rows):
        own = [(index, row) for index, row in enumerate(rows) if row.adapter == adapter]
        shared = _shared([row for _, row in own])
        root = pack.add(adapter, own[0][1].ids[:shared]) if shared else None
        for index, row in own:
            added = pack.add(adapter, row.ids[shared:], root)
            nodes[index] = [added] if root is None else [root, added]
            node = pack.nodes[added]
            before = None if node.parent is None else pack.nodes[node.parent]
            for offset in range(shared, len(row.ids)):
                if not row.learned[offset] or offset == 0:
                    continue
                inside = offset - shared
                spot = node.start + inside - 1
                if inside == 0:
                    assert before is not None
                    spot = before.start + before.length - 1
                spots.append((spot, row.ids[offset], index))
    predict, at = torch.unique(torch.tensor([s for s, _, _ in spots]).long(), return_inverse=True)
    target = torch.tensor([t for _, t, _ in spots]).long()
    row_of = torch.tensor([r for _, _, r in spots]).long()
    return PlacedRows(pack, predict, at, target, row_of, nodes)


def token_losses(
    base: Base,
    rows: Sequence[TokenRow],
    contributions: Mapping[str, Contribution],
    *,
    checkpointing: bool = False,
    trunk: Trunk | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss (negative log-probability, nats) of every label in `rows`, and its row.

    One pass over the base; differentiable in the contributions. Both results are [labels]. With
    `checkpointing` the backward pass computes every layer again instead of keeping its inside;
    with a `trunk` it begins at the lowest layer that an adapter of `rows` changes.
    """
    placed = place(rows, contributions)
    first, entering = 0, None
    if trunk is not None:
        lowest = depth_of([row.adapter for row in rows], contributions, base.shape.layers)
        moved = any(contributions[row.adapter].prefix_tokens for row in rows if row.adapter)
        if trunk.usable(lowest, moved=moved):
            first, entering = lowest, _entering(trunk, lowest, rows, placed)
    losses = label_losses(
        base,
        placed.pack,
        placed.predict,
        Labels(placed.at, placed.target),
        checkpointing=checkpointing,
        first=first,
        entering=entering,
    )
    return losses, placed.row.to(losses.device)


def _entering(trunk: Trunk, layer: int, rows: Sequence[TokenRow], placed: PlacedRows) -> Tensor:
    """What enters `layer` for every token of the pack that `rows` were placed in."""
    hidden = trunk.entering(layer, [row.ids for row in rows])
    pieces: list[Tensor | None] = [None] * len(placed.pack.nodes)
    for own, nodes in zip(hidden, placed.nodes, strict=True):
        at = 0
        for index in nodes:
            length = placed.pack.nodes[index].length
            pieces[index] = own[at : at + length]
            at += length
    assert all(piece is not None for piece in pieces)
    return torch.cat([piece for piece in pieces if piece is not None])


def by_budget(rows: Iterable[TokenRow], tokens: int) -> Iterator[list[TokenRow]]:
    """Rows in their order, in groups of at most `tokens` tokens (and at least one row)."""
    group: list[TokenRow] = []
    size = 0
    for row in rows:
        if group and size + len(row.ids) > tokens:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row.ids)
    if group:
        yield group


def _shared(rows: Sequence[TokenRow]) -> int:
    """How many tokens all rows begin with, none of them labels, leaving each row at least one."""
    if len(rows) < 2:
        return 0
    first = rows[0]
    columns = zip(*(zip(row.ids[:-1], row.learned[:-1], strict=True) for row in rows), strict=False)
    alike = takewhile(
        lambda column: all(token == column[0] and not token[1] for token in column), columns
    )
    count = sum(1 for _ in alike)
    return min(count, len(first.ids) - 1)
