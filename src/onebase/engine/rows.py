"""Token rows: packing them, and computing the losses of their labels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from onebase.adapters.contribution import Contribution
from onebase.engine.forward import Labels, PassOutput, read_pack
from onebase.engine.pack import Pack
from onebase.engine.trunk import Trunk, lowest_changed_layer_of
from onebase.model.base import Base

_SLACK = 0.25  # by which a group may exceed its budget, so that no group is nearly empty


@dataclass(frozen=True)
class TokenRow:
    """One text for one adapter (None: the bare base): its tokens, and which of them are labels. The
    hidden states (the inputs of the language-model head) are returned for the tokens with the indices
    `hidden_states_at`.
    """

    adapter: str | None
    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    hidden_states_at: tuple[int, ...] = ()

    def bare(self) -> "TokenRow":
        """This row for the bare base: without an adapter, and without placed virtual tokens."""
        real = [index for index, token in enumerate(self.ids) if token >= 0]
        return TokenRow(
            None,
            tuple(self.ids[index] for index in real),
            tuple(self.loss_mask[index] for index in real),
        )

    @property
    def labels(self) -> int:
        """How many tokens have a loss. The first token of a text has none: nothing predicts it."""
        return sum(self.loss_mask[1:])

    @property
    def context(self) -> int:
        """How many tokens are before the first label, or up to the first requested hidden state."""
        if True in self.loss_mask:
            return self.loss_mask.index(True)
        return self.hidden_states_at[0] + 1 if self.hidden_states_at else len(self.ids)


@dataclass(frozen=True)
class PackedRows:
    """A pack of rows. `predict` has the indices of the pack's tokens whose outputs are needed, each
    once. For every label: `at`, an index into `predict`; its `target` token; and the `row` it belongs
    to. For every hidden state: `hidden_states_at`, an index into `predict`, and `hidden_state_row`.
    `nodes` has the pack's nodes of every row in order, including shared ones.
    """

    pack: Pack
    predict: Tensor
    at: Tensor
    target: Tensor
    row: Tensor
    hidden_states_at: Tensor
    hidden_state_row: Tensor
    nodes: list[list[int]]


def pack_rows(rows: Sequence[TokenRow], contributions: Mapping[str, Contribution]) -> PackedRows:
    """Put rows into one pack. The common prefix of an adapter's rows is in it once, and so is the
    prompt that several of them share.
    """
    pack = Pack(contributions)
    nodes: list[list[int]] = [[] for _ in rows]
    for adapter in dict.fromkeys(row.adapter for row in rows):
        adapter_rows = [(index, row) for index, row in enumerate(rows) if row.adapter == adapter]
        shared = _shared_tokens([row for _, row in adapter_rows])
        root = pack.add(adapter, adapter_rows[0][1].ids[:shared]) if shared else None
        for group, prompt_length in _by_prompt(adapter_rows):
            parents = [] if root is None else [root]
            placed = shared
            if len(group) > 1 and prompt_length > shared:
                ids = group[0][1].ids[shared:prompt_length]
                parents.append(pack.add(adapter, ids, parents[-1] if parents else None))
                placed = prompt_length
            for index, row in group:
                added = pack.add(adapter, row.ids[placed:], parents[-1] if parents else None)
                nodes[index] = [*parents, added]
    labels: list[tuple[int, int, int]] = []  # predicting pack token, target, row
    states: list[tuple[int, int]] = []  # pack token, row
    for index, row in enumerate(rows):
        pack_tokens = [token for node in nodes[index] for token in pack.rows(node)]
        for offset in range(len(row.ids)):
            if row.loss_mask[offset] and offset > 0:
                labels.append((pack_tokens[offset - 1], row.ids[offset], index))
        states += [(pack_tokens[offset], index) for offset in row.hidden_states_at]
    needed = torch.tensor([token for token, *_ in (*labels, *states)]).long()
    predict, index_of = torch.unique(needed, return_inverse=True)
    return PackedRows(
        pack,
        predict,
        at=index_of[: len(labels)],
        target=torch.tensor([target for _, target, _ in labels]).long(),
        row=torch.tensor([row for _, _, row in labels]).long(),
        hidden_states_at=index_of[len(labels) :],
        hidden_state_row=torch.tensor([row for _, row in states]).long(),
        nodes=nodes,
    )


def _by_prompt(
    rows: Sequence[tuple[int, TokenRow]],
) -> Iterator[tuple[list[tuple[int, TokenRow]], int]]:
    """The rows in groups with the same prompt (the tokens before the first label, leaving each row at
    least one token), and the prompt's length.
    """
    groups: dict[tuple[int, ...], list[tuple[int, TokenRow]]] = {}
    for index, row in rows:
        prompt = row.ids[: min(row.context, len(row.ids) - 1)]
        groups.setdefault(prompt, []).append((index, row))
    for prompt, group in groups.items():
        yield group, len(prompt)


def read_rows(
    base: Base,
    rows: Sequence[TokenRow],
    contributions: Mapping[str, Contribution],
    *,
    temperature: float = 1.0,
    entropies: bool = False,
    checkpointing: bool = False,
    trunk: Trunk | None = None,
) -> tuple[PassOutput, PackedRows]:
    """The loss of every label in `rows` and the requested hidden states, in one pass of the base.

    Differentiable in the contributions. With `checkpointing`, the backward pass recomputes every layer
    instead of storing its activations. With a `trunk`, the pass starts at the lowest layer that an
    adapter of `rows` changes.
    """
    placed = pack_rows(rows, contributions)
    base.require_room(placed.pack.max_length)
    first, entering = 0, None
    if trunk is not None:
        lowest = lowest_changed_layer_of(
            [row.adapter for row in rows], contributions, base.shape.layers
        )
        shifted = any(contributions[row.adapter].prefix_tokens for row in rows if row.adapter)
        if trunk.usable(lowest, shifted=shifted):
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
    """The loss (negative log-probability, nats) of every label in `rows`, and the index of its row,
    both [labels]. Otherwise as `read_rows`.
    """
    output, placed = read_rows(base, rows, contributions, checkpointing=checkpointing, trunk=trunk)
    return output.losses, placed.row.to(output.losses.device)


def _entering(trunk: Trunk, layer: int, rows: Sequence[TokenRow], placed: PackedRows) -> Tensor:
    """The input of `layer` for every token of the pack of `rows`, [tokens, hidden]."""
    by_row = trunk.entering(layer, [row.ids for row in rows])
    by_node: list[Tensor | None] = [None] * len(placed.pack.nodes)
    for hidden, nodes in zip(by_row, placed.nodes, strict=True):
        start = 0
        for index in nodes:
            length = placed.pack.nodes[index].length
            by_node[index] = hidden[start : start + length]
            start += length
    assert all(hidden is not None for hidden in by_node)
    return torch.cat([hidden for hidden in by_node if hidden is not None])


def by_budget(rows: Sequence[TokenRow], tokens: int) -> Iterator[list[TokenRow]]:
    """The rows in order, in groups of about `tokens` tokens each (see `even_groups`)."""
    for group in even_groups([len(row.ids) for row in rows], tokens):
        yield [rows[index] for index in group]


def even_groups(sizes: Sequence[int], budget: int) -> Iterator[range]:
    """Consecutive items in as few groups as possible, of similar total size: at most `budget` each, or
    a quarter more. A group has at least one item.

    A small group at the end would take nearly the time of a large one, since it reads every weight.
    """
    remaining, start = sum(sizes), 0
    while start < len(sizes):
        count = max(1, math.ceil(remaining / budget - _SLACK)) if budget else len(sizes)
        size, end = sizes[start], start + 1
        while end < len(sizes):
            below_mean = size + sizes[end] / 2 <= remaining / count
            if not below_mean or size + sizes[end] > (1 + _SLACK) * budget:
                break
            size, end = size + sizes[end], end + 1
        yield range(start, end)
        remaining, start = remaining - size, end


def _shared_tokens(rows: Sequence[TokenRow]) -> int:
    """The length of the rows' common prefix without labels, leaving each row at least one token."""
    if len(rows) < 2:
        return 0
    columns = zip(
        *(zip(row.ids[:-1], row.loss_mask[:-1], strict=True) for row in rows), strict=False
    )
    shared_columns = takewhile(
        lambda column: all(token == column[0] and not token[1] for token in column), columns
    )
    return sum(1 for _ in shared_columns)
