"""The cross-entropy loss computed directly from the hidden states that enter a frozen head.

Logits over a large vocabulary are the largest tensors of a training step, and autograd stores them
twice. With frozen weights, the gradient is known as soon as the loss is. Both are computed here
block by block, and no block of logits is stored: the same numbers in less memory and time.

A block is some rows by a part of the vocabulary, small enough for a CPU's cache. The running sums
of the softmax are rescaled when a later part has a larger logit (Milakov and Gimelshein 2018).
"""

from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 1024  # the most rows of a block
# The most logits of a block: as many as fit a CPU's cache, or keep a GPU busy.
_BLOCK = {"cpu": 1 << 23, "cuda": 1 << 26}
_ENTROPY_ROWS = 16  # processed at a time


def is_frozen_linear(head: nn.Module) -> bool:
    """Whether `head` is a plain linear layer with frozen weights and no bias."""
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    return head.weight.is_floating_point() and not head.weight.requires_grad


def head_losses(
    hidden: Tensor, weight: Tensor, target: Tensor, *, entropies: Tensor | None = None
) -> Tensor:
    """-log softmax(`weight` @ `hidden`) at `target` for every row, in fp32.

    `hidden` is [labels, hidden], `weight` [vocabulary, hidden], `target` [labels]; returns
    [labels]. Differentiable in `hidden` only. `entropies`, [labels], if given, is filled with the
    entropy of each row's softmax (nats), without gradient.
    """
    losses: Tensor = _HeadLosses.apply(  # type: ignore[no-untyped-call]
        hidden, weight, target, entropies
    )
    return losses


class _Sums:
    """The running sums of the softmax of some rows, over the vocabulary part by part."""

    def __init__(self, rows: Tensor, target: Tensor, entropies: bool, gradients: bool) -> None:
        self._rows, self._target = rows, target
        zero = rows.new_zeros(len(rows), dtype=torch.float32)
        self._max = zero + torch.finfo(torch.float32).min  # the largest logit so far
        self._target_logits = zero
        self._total = zero  # the sum of exp(logit - max)
        self._weighted = zero if entropies else None  # of exp(logit - max) (logit - max)
        # The sum of exp(logit - max) times the token's weights.
        self._weights = rows.new_zeros(rows.shape, dtype=torch.float32) if gradients else None

    def add_all(self, weight: Tensor) -> None:
        """Add all of a head's `weight`, [vocabulary, hidden]."""
        block_logits = _BLOCK.get(weight.device.type, _BLOCK["cuda"])
        columns = min(len(weight), max(1, block_logits // len(self._rows)))
        buffer = weight.new_empty(len(self._rows) * columns)
        for start in range(0, len(weight), columns):
            part = weight[start : start + columns]
            logits = buffer[: len(self._rows) * len(part)].view(len(self._rows), len(part))
            self._add(part, start, torch.mm(self._rows, part.t(), out=logits).float())

    def _add(self, part: Tensor, start: int, logits: Tensor) -> None:
        """Add `part` of the weights, from token `start` on; `logits` are overwritten."""
        column = self._target - start
        target_logits = logits.gather(1, column.clamp(0, len(part) - 1)[:, None]).squeeze(1)
        in_part = (column >= 0) & (column < len(part))
        self._target_logits = torch.where(in_part, target_logits, self._target_logits)
        maximum = torch.maximum(self._max, logits.amax(1))
        shift, self._max = self._max - maximum, maximum
        rescale = shift.exp()
        logits.sub_(maximum[:, None])
        if self._weighted is not None:
            weighted = self._weighted + shift * self._total
            self._weighted = rescale * weighted + _weighted_sums(logits)
        exponentials = logits.exp_()
        self._total = rescale * self._total + exponentials.sum(1)
        if self._weights is None:
            return
        self._weights.mul_(rescale[:, None])
        if part.dtype == torch.float32:
            self._weights.addmm_(exponentials, part)
        else:
            self._weights.add_(torch.mm(exponentials.to(part.dtype), part))

    def losses(self) -> Tensor:
        """-log softmax at the targets."""
        return self._max + self._total.log() - self._target_logits

    def entropies(self) -> Tensor:
        """The entropy of each row's softmax, nats."""
        assert self._weighted is not None
        return self._total.log() - self._weighted / self._total

    def mean_weights(self) -> Tensor:
        """The mean of the head's weights under the softmax, [rows, hidden]."""
        assert self._weights is not None
        return self._weights / self._total[:, None]


def _weighted_sums(centred: Tensor) -> Tensor:
    """sum(exp(c) c) of every row, a few rows at a time so that the logits are not copied whole."""
    blocks = torch.split(centred, _ENTROPY_ROWS)
    return torch.cat([torch.linalg.vecdot(block.exp(), block) for block in blocks])


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, entropies: Tensor | None
    ) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), _ROWS):
            rows = slice(start, start + _ROWS)
            block, block_target = hidden[rows].to(weight.dtype), target[rows]
            sums = _Sums(block, block_target, entropies is not None, gradient is not None)
            sums.add_all(weight)
            losses[rows] = sums.losses()
            if entropies is not None:
                entropies[rows] = sums.entropies()
            if gradient is not None:
                gradient[rows] = (sums.mean_weights() - weight[block_target]).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        if gradient is None:
            return None, None, None, None
        return gradient * upstream[0][:, None].to(gradient), None, None, None
