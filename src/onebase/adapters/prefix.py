"""P-tuning v2 (Liu et al. 2022), also called prefix tuning (Li and Liang 2021).

Every decoder layer, or each chosen one, attends to learned keys and values besides those of the
text. No rotary embedding is applied to the learned keys: they enter attention as they are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onebase.adapters.option import option
from onebase.adapters.prompt import VirtualTokenOptions
from onebase.model.base import ModelShape


class PTuningV2Options(VirtualTokenOptions):
    """The options of `p-tuning-v2`."""

    projection: bool = option(
        False,
        "Learn the prefix through an MLP, which is dropped after training.",
        "通过 MLP 学习前缀，训练结束后丢弃该 MLP。",
    )
    hidden: int = option(
        512,
        "Hidden size of that MLP; without projection it is ignored.",
        "该 MLP 的隐藏层宽度；未启用 projection 时忽略。",
        ge=1,
    )
    layers: str = option(
        "all",
        "Decoder layers that attend to a prefix: all, top:10, bottom:4, or numbers "
        "from 0 such as 0,2,5-9. The other layers see the text alone, at the same positions.",
        "关注前缀的解码层：all、top:10、bottom:4，或从 0 开始的编号，如 0,2,5-9。"
        "其余各层只看到文本，位置编号不变。",
    )


class DeepPrefix(nn.Module):
    """The prefix with one row per token, [tokens, layers * 2 * kv_heads * head_dim] (PEFT's layout),
    for the given `layers` in their order, or for all.

    With a `projection` the rows are the output of an MLP over an embedding of size
    kv_heads * head_dim, added to `start` if that is given.
    """

    start: Tensor | None

    def __init__(
        self,
        shape: ModelShape,
        tokens: int,
        *,
        projection: int | None,
        start: Tensor | None,
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.layers = tuple(range(shape.layers) if layers is None else layers)
        width = shape.kv_heads * shape.head_dim
        row = len(self.layers) * 2 * width
        self.transform: nn.Sequential | None = None
        self.embedding = nn.Embedding(tokens, row if projection is None else width)
        if projection is not None:
            self.transform = nn.Sequential(
                nn.Linear(width, projection), nn.Tanh(), nn.Linear(projection, row)
            )
            if start is not None:
                nn.init.zeros_(self.transform[-1].weight)  # type: ignore[arg-type]
                nn.init.zeros_(self.transform[-1].bias)  # type: ignore[arg-type]
        elif start is not None:
            self.embedding.weight.data.copy_(start)
        self.register_buffer(
            "start", None if start is None or projection is None else start.clone()
        )

    def forward(self) -> Tensor:
        """The prefix, [tokens, layers * 2 * kv_heads * head_dim]."""
        rows: Tensor = self.embedding.weight
        if self.transform is not None:
            rows = self.transform(rows)
        return rows if self.start is None else self.start + rows

    @property
    def everywhere(self) -> bool:
        """Whether every layer attends to the prefix."""
        return len(self.layers) == self.shape.layers

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """Keys and values, each [layers, kv_heads, tokens, head_dim]; zeros in layers without a prefix."""
        shape = self.shape
        rows = self()
        stacked = rows.view(len(rows), len(self.layers), 2, shape.kv_heads, shape.head_dim)
        keys, values = stacked.permute(2, 1, 3, 0, 4)
        if self.everywhere:
            return keys, values
        chosen = torch.tensor(self.layers, device=rows.device)
        zeros = rows.new_zeros(shape.layers, *keys.shape[1:])
        return zeros.index_copy(0, chosen, keys), zeros.index_copy(0, chosen, values)

    def masked_prefix(self) -> tuple[int, ...]:
        """For each layer, how many of the prefix's tokens it does not attend to: none or all.

        Empty if every layer attends to the prefix.
        """
        if self.everywhere:
            return ()
        tokens = self.embedding.num_embeddings
        return tuple(0 if at in self.layers else tokens for at in range(self.shape.layers))


def flatten(keys: Tensor, values: Tensor) -> Tensor:
    """Keys and values, each [layers, kv_heads, tokens, head_dim], as rows of DeepPrefix."""
    stacked = torch.stack([keys, values]).permute(3, 1, 0, 2, 4)
    return stacked.reshape(stacked.shape[0], -1)
