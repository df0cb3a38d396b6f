"""A pack: many segments of many adapters in one row of tokens, as one tree.

A negative id stands for a virtual token inside the text: -1 is its adapter's first placed one.

Every node holds some tokens and belongs to one adapter (or to the bare base). A node's tokens
attend to its adapter's KV prefix, to all its ancestors, and causally to their own node: so an
adapter's virtual tokens, or the text that many rows begin with, stand in a pack once, and every
row below them attends to them. Causal attention makes that exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onebase.adapters.contribution import Contribution


@dataclass(frozen=True)
class Node:
    """`length` tokens from `start` in the pack, the first at `position` of its text.

    `adapter` is the adapter's name, None for the bare base; `parent` a node's index or None.
    """

    adapter: str | None
    start: int
    length: int
    position: int
    parent: int | None


class Pack:
    """A tree of segments under construction, then the tensors the pass needs of it."""

    def __init__(self, contributions: Mapping[str, Contribution]) -> None:
        self.contributions = contributions
        self.nodes: list[Node] = []
        self.ids: list[int] = []
        self._virtual: dict[str, int] = {}

    def add(self, adapter: str | None, ids: Sequence[int], parent: int | None = None) -> int:
        """Add a segment and return its node. A segment without a parent begins a text: it stands
        behind its adapter's virtual tokens, which are added when first needed.
        """
        if parent is None and adapter is not None:
            parent = self.virtual_node(adapter)
        return self._append(adapter, ids, parent)

    def virtual_node(self, adapter: str) -> int | None:
        """The node of this adapter's virtual tokens, added when first asked for; None without."""
        tokens = self.contributions[adapter].virtual_tokens
        if tokens and adapter not in self._virtual:
            self._virtual[adapter] = self._append(adapter, [0] * tokens, None)
        return self._virtual.get(adapter)

    def _append(self, adapter: str | None, ids: Sequence[int], parent: int | None) -> int:
        if parent is not None:
            above = self.nodes[parent]
            position = above.position + above.length
        else:
            position = 0 if adapter is None else self.contributions[adapter].prefix_tokens
        self.nodes.append(Node(adapter, len(self.ids), len(ids), position, parent))
        self.ids.extend(ids)
        return len(self.nodes) - 1

    def path(self, node: int) -> list[int]:
        """`node` and its ancestors, the outermost first."""
        line = [node]
        while (parent := self.nodes[line[-1]].parent) is not None:
            line.append(parent)
        return line[::-1]

    def rows(self, node: int) -> range:
        """Where a node's tokens stand in the pack."""
        return range(self.nodes[node].start, self.nodes[node].start + self.nodes[node].length)

    @property
    def adapters(self) -> list[str]:
        """The adapters in this pack, in order of appearance."""
        return list(dict.fromkeys(node.adapter for node in self.nodes if node.adapter is not None))

    @property
    def longest(self) -> int:
        """The tokens of the longest text, those of its prefix and its virtual tokens among them."""
        return max((node.position + node.length for node in self.nodes), default=0)

    def positions(self) -> Tensor:
        """The position of every token in its text, [tokens]."""
        return torch.cat(
            [torch.arange(node.position, node.position + node.length) for node in self.nodes]
        )

    def owners(self) -> Tensor:
        """For every token the index of its adapter in `adapters`, -1 for the base, [tokens]."""
        order = {name: index for index, name in enumerate(self.adapters)}
        return torch.cat(
            [
                torch.full((node.length,), -1 if node.adapter is None else order[node.adapter])
                for node in self.nodes
            ]
        )

    def embeddings(self, embed: torch.nn.Embedding) -> Tensor:
        """The tokens' embeddings with the virtual tokens in their places, [tokens, hidden]."""
        device = embed.weight.device
        embedded: Tensor = embed(torch.tensor(self.ids, device=device).clamp(min=0))
        if min(self.ids, default=0) < 0:
            embedded = self._with_placed(embedded)
        if not self._virtual:
            return embedded
        pieces, at = [], 0
        for adapter, index in sorted(self._virtual.items(), key=lambda item: item[1]):
            node = self.nodes[index]
            virtual = self.contributions[adapter].virtual
            assert virtual is not None
            pieces += [embedded[at : node.start], virtual.to(embedded.dtype)]
            at = node.start + node.length
        return torch.cat([*pieces, embedded[at:]])

    def _with_placed(self, embedded: Tensor) -> Tensor:
        """`embedded` with every adapter's placed tokens where the ids are negative."""
        spots, rows = [], []
        for node in self.nodes:
            for at in range(node.start, node.start + node.length):
                if self.ids[at] < 0:
                    assert node.adapter is not None, "the base has no virtual tokens"
                    placed = self.contributions[node.adapter].placed
                    assert placed is not None, f"{node.adapter} places no virtual tokens"
                    spots.append(at)
                    rows.append(placed[-1 - self.ids[at]])
        where = torch.tensor(spots, device=embedded.device)
        return embedded.index_copy(0, where, torch.stack(rows).to(embedded.dtype))
