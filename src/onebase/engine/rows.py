"""Rows of tokens into packs, and what is asked of them: the loss of every labelled token."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from onebase.adapters.contribution import Contribution
from onebase.engine.forward import Labels, PassOutput, read_pack
from onebase.engine.pack import Pack
from onebase.engine.trunk import Trunk, depth_of
from onebase.model.base import Base

_SLACK = 0.25  # how much more than its budget a group may hold, so that none is left nearly empty


@dataclass(frozen=True)
class TokenRow:
    """One text for one adapter (None: the bare base): its tokens, and which are labels. `hidden_states_at`
    names the tokens (by index) whose state is asked for: what enters the language-model head.
    """

    adapter: str | None
    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    hidden_states_at: tuple[int, ...] = ()

    def bare(self) -> "TokenRow":
        """This row for the bare base: without an adapter, and without placed virtual tokens."""
        kept = [index for index, token in enumerate(self.ids) if token >= 0]
        return TokenRow(
            None,
            tuple(self.ids[index] for index in kept),
            tuple(self.loss_mask[index] for index in kept),
        )

    @property
    def labels(self) -> int:
        """How many tokens have a loss; the first token of a text has none to predict it."""
        return sum(self.loss_mask[1:])

    @property
    def context(self) -> int:
        """How many tokens there are before the first label (or up to the first state)."""
        if True in self.loss_mask:
            return self.loss_mask.index(True)
        return self.hidden_states_at[0] + 1 if self.hidden_states_at else len(self.ids)


@dataclass(frozen=True)
class PlacedRows:
    """A pack of rows: `predict`, the pack's rows that are needed, each once; for every label `at`
    (an index into `predict`), its `target` token, and the `row` it is of; for every state `hidden_states_at`
    (an index into `predict`) and the `hidden_state_row` it is of. `nodes` has the pack's nodes of every
    row in order, those that rows share included.
    """

    pack: Pack
    predict: Tensor
    at: Tensor
    target: Tensor
    row: Tensor
    hidden_states_at: Tensor
    hidden_state_row: Tensor
    nodes: list[list[int]]


def place(rows: Sequence[TokenRow], contributions: Mapping[str, Contribution]) -> PlacedRows:
    """Put rows into one pack. What all rows of an adapter begin with stands there once, and so
    does the text that several of them answer.
    """
    pack = Pack(contributions)
    nodes: list[list[int]] = [[] for _ in rows]
    for adapter in dict.fromkeys(row.adapter for row in rows):
        own = [(index, row) for index, row in enumerate(rows) if row.adapter == adapter]
        shared = _shared([row for _, row in own])
        root = pack.add(adapter, own[0][1].ids[:shared]) if shared else None
        for group, asked in _asked_alike(own, shared):
            parents = [] if root is None else [root]
            begun = shared
            if len(group) > 1 and asked > shared:
                ids = group[0][1].ids[shared:asked]
                parents.append(pack.add(adapter, ids, parents[-1] if parents else None))
                begun = asked
            for index, row in group:
                added = pack.add(adapter, row.ids[begun:], parents[-1] if parents else None)
                nodes[index] = [*parents, added]
    spots: list[tuple[int, int, int]] = []  # pack row that predicts, target, row
    hidden_states_at: list[tuple[int, int]] = []  # pack row, row
    for index, row in enumerate(rows):
        line = [spot for node in nodes[index] for spot in pack.rows(node)]
        for offset in range(len(row.ids)):
            if row.loss_mask[offset] and offset > 0:
                spots.append((line[offset - 1], row.ids[offset], index))
        hidden_states_at += [(line[offset], index) for offset in row.hidden_states_at]
    needed = torch.tensor(
        [spot for spot, _, _ in spots] + [spot for spot, _ in hidden_states_at]
    ).long()
    predict, at = torch.unique(needed, return_inverse=True)
    return PlacedRows(
        pack,
        predict,
        at[: len(spots)],
        torch.tensor([target for _, target, _ in spots]).long(),
        torch.tensor([row for _, _, row in spots]).long(),
        at[len(spots) :],
        torch.tensor([row for _, row in hidden_states_at]).long(),
        nodes,
    )


def _asked_alike(
    rows: Sequence[tuple[int, TokenRow]], shared: int
) -> Iterator[tuple[list[tuple[int, TokenRow]], int]]:
    """The rows in groups with the same text before their first label, and its length (leaving each
    row at least one token). A group of one shares nothing.
    """
    groups: dict[tuple[int, ...], list[tuple[int, TokenRow]]] = {}
    for index, row in rows:
        asked = row.ids[: min(row.context, len(row.ids) - 1)]
        groups.setdefault(asked, []).append((index, row))
    for asked, group in groups.items():
        yield group, len(asked)


def read_rows(
    base: Base,
    rows: Sequence[TokenRow],
    contributions: Mapping[str, Contribution],
    *,
    temperature: float = 1.0,
    entropies: bool = False,
    checkpointing: bool = False,
    trunk: Trunk | None = None,
) -> tuple[PassOutput, PlacedRows]:
    """The loss of every label in `rows` and the states they ask for, in one pass over the base.

    Differentiable in the contributions. With `checkpointing` the backward pass computes every
    layer again instead of keeping its inside; with a `trunk` it begins at the lowest layer that an
    adapter of `rows` changes.
    """
    placed = place(rows, contributions)
    base.require_room(placed.pack.longest)
    first, entering = 0, None
    if trunk is not None:
        lowest = depth_of([row.adapter for row in rows], contributions, base.shape.layers)
        moved = any(contributions[row.adapter].prefix_tokens for row in rows if row.adapter)
        if trunk.usable(lowest, moved=moved):
            first, entering = lowest, _entering(trunk, lowest, rows, placed)
    output = read_pack(
        base,
        placed.pack,
        placed.predict,
        Labels(placed.at, placed.target, temperature),
        placed.hidden_states_at,
        entropies=entropies,
        checkpointing=checkpointing,
        first=first,
        entering=entering,
    )
    return output, placed


def token_losses(
    base: Base,
    rows: Sequence[TokenRow],
    contributions: Mapping[str, Contribution],
    *,
    checkpointing: bool = False,
    trunk: Trunk | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss (negative log-probability, nats) of every label in `rows`, and its row, both
    [labels]; else as `read_rows`.
    """
    output, placed = read_rows(base, rows, contributions, checkpointing=checkpointing, trunk=trunk)
    return output.losses, placed.row.to(output.losses.device)


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


def by_budget(rows: Sequence[TokenRow], tokens: int) -> Iterator[list[TokenRow]]:
    """Rows in their order, in groups of about `tokens` tokens each, as `even_groups` has them."""
    for group in even_groups([len(row.ids) for row in rows], tokens):
        yield [rows[index] for index in group]


def even_groups(sizes: Sequence[int], budget: int) -> Iterator[range]:
    """Neighbours in groups of about one size: as few as there can be with `budget` each, or a
    quarter more. A group has at least one.

    A small group at the end would cost nearly the time of a large one: every weight is read for it.
    """
    rest, start = sum(sizes), 0
    while start < len(sizes):
        count = max(1, math.ceil(rest / budget - _SLACK)) if budget else len(sizes)
        own, end = sizes[start], start + 1
        while end < len(sizes):
            near = own + sizes[end] / 2 <= rest / count
            if not near or own + sizes[end] > (1 + _SLACK) * budget:
                break
            own, end = own + sizes[end], end + 1
        yield range(start, end)
        rest, start = rest - own, end


def _shared(rows: Sequence[TokenRow]) -> int:
    """How many tokens all rows begin with, none of them labels, leaving each row at least one."""
    if len(rows) < 2:
        return 0
    first = rows[0]
    columns = zip(
        *(zip(row.ids[:-1], row.loss_mask[:-1], strict=True) for row in rows), strict=False
    )
    alike = takewhile(
        lambda column: all(token == column[0] and not token[1] for token in column), columns
    )
    count = sum(1 for _ in alike)
    return min(count, len(first.ids) - 1)
