"""A pack: segments of several adapters in one row of tokens, organized as a tree.

A negative id is a virtual token placed inside the text: -1 is the adapter's first placed token.

Every node holds consecutive tokens and belongs to one adapter, or to the bare base. Its tokens
attend to the adapter's KV prefix, to all ancestors of the node, and causally within the node. An
adapter's virtual tokens, or a prefix that several rows share, are therefore in a pack only once,
and all rows below attend to them. This is exact because attention is causal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onebase.adapters.contribution import Contribution


@dataclass(frozen=True)
class Node:
    """`length` tokens of the pack from index `start` on; the first has `position` in its text.

    `adapter` is the adapter's name, None for the bare base. `parent` is a node index or None.
    """

    adapter: str | None
    start: int
    length: int
    position: int
    parent: int | None


class Pack:
    """Builds the tree of segments, and the tensors that a forward pass needs."""

    def __init__(self, contributions: Mapping[str, Contribution]) -> None:
        self.contributions = contributions
        self.nodes: list[Node] = []
        self.ids: list[int] = []
        self._virtual: dict[str, int] = {}

    def add(self, adapter: str | None, ids: Sequence[int], parent: int | None = None) -> int:
        """Add a segment and return its node index. A segment without a parent begins a text and
        follows its adapter's virtual tokens, which are added when they are first needed.
        """
        if parent is None and adapter is not None:
            parent = self.virtual_node(adapter)
        return self._append(adapter, ids, parent)

    def virtual_node(self, adapter: str) -> int | None:
        """The node of the adapter's virtual tokens, added by the first call; None if it has none."""
        tokens = self.contributions[adapter].virtual_tokens
        if tokens and adapter not in self._virtual:
            self._virtual[adapter] = self._append(adapter, [0] * tokens, None)
        return self._virtual.get(adapter)

    def _append(self, adapter: str | None, ids: Sequence[int], parent: int | None) -> int:
        if parent is not None:
            parent_node = self.nodes[parent]
            position = parent_node.position + parent_node.length
        else:
            position = 0 if adapter is None else self.contributions[adapter].prefix_tokens
        self.nodes.append(Node(adapter, len(self.ids), len(ids), position, parent))
        self.ids.extend(ids)
        return len(self.nodes) - 1

    def path(self, node: int) -> list[int]:
        """`node` and its ancestors, the root first."""
        path = [node]
        while (parent := self.nodes[path[-1]].parent) is not None:
            path.append(parent)
        return path[::-1]

    def rows(self, node: int) -> range:
        """The pack indices of a node's tokens."""
        return range(self.nodes[node].start, self.nodes[node].start + self.nodes[node].length)

    @property
    def adapters(self) -> list[str]:
        """The adapters in this pack, in order of appearance."""
        return list(dict.fromkeys(node.adapter for node in self.nodes if node.adapter is not None))

    @property
    def max_length(self) -> int:
        """The length of the longest text in tokens, with its KV prefix and virtual tokens."""
        return max((node.position + node.length for node in self.nodes), default=0)

    def positions(self) -> Tensor:
        """The position of every token in its text, [tokens]."""
        return torch.cat(
            [torch.arange(node.position, node.position + node.length) for node in self.nodes]
        )

    def owners(self) -> Tensor:
        """The index in `adapters` of every token's adapter, -1 for the base, [tokens]."""
        index_of: dict[str | None, int] = {None: -1}
        index_of |= {name: index for index, name in enumerate(self.adapters)}
        return torch.cat(
            [torch.full((node.length,), index_of[node.adapter]) for node in self.nodes]
        )

    def embeddings(self, embed: torch.nn.Embedding) -> Tensor:
        """The embeddings of all tokens, virtual tokens included, [tokens, hidden]."""
        device = embed.weight.device
        embedded: Tensor = embed(torch.tensor(self.ids, device=device).clamp(min=0))
        if min(self.ids, default=0) < 0:
            embedded = self._with_placed(embedded)
        if not self._virtual:
            return embedded
        pieces, copied = [], 0
        for adapter, index in sorted(self._virtual.items(), key=lambda item: item[1]):
            node = self.nodes[index]
            virtual = self.contributions[adapter].virtual
            assert virtual is not None
            pieces += [embedded[copied : node.start], virtual.to(embedded.dtype)]
            copied = node.start + node.length
        return torch.cat([*pieces, embedded[copied:]])

    def _with_placed(self, embedded: Tensor) -> Tensor:
        """`embedded` with the placed virtual tokens where ids are negative."""
        indices, rows = [], []
        for node in self.nodes:
            for index in range(node.start, node.start + node.length):
                if self.ids[index] < 0:
                    assert node.adapter is not None, "the base has no virtual tokens"
                    placed = self.contributions[node.adapter].placed
                    assert placed is not None, f"{node.adapter} places no virtual tokens"
                    indices.append(index)
                    rows.append(placed[-1 - self.ids[index]])
        destination = torch.tensor(indices, device=embedded.device)
        return embedded.index_copy(0, destination, torch.stack(rows).to(embedded.dtype))
