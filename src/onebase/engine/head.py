"""The loss of labels straight from what enters a frozen language-model head.

Logits over a large vocabulary are the largest tensors of a training step, and autograd keeps them
twice. With frozen weights the gradient is known as soon as the loss is, so both are computed here
block by block, and no logits outlive their block. The same numbers, in less memory and time.

A block is some rows by a part of the vocabulary, small enough for a CPU's cache; what it adds to
the softmax is rescaled when a later part has a larger logit (Milakov and Gimelshein 2018).
"""

from typing import Any

import torch
from torch import Tensor, nn

# The most rows of one block, and its logits: as many as a cache holds, or as keep a GPU busy.
_ROWS = 1024
_BLOCK = {"cpu": 1 << 23, "cuda": 1 << 26}
_FEW = 16  # rows


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
    [labels]. Differentiable in `hidden` alone. `entropies`, [labels], is filled with the entropy
    of each row's softmax (nats), without gradient.
    """
    losses: Tensor = _HeadLosses.apply(  # type: ignore[no-untyped-call]
        hidden, weight, target, entropies
    )
    return losses


class _Sums:
    """What the softmax of some rows needs, summed over the vocabulary a part at a time."""

    def __init__(self, rows: Tensor, wanted: Tensor, entropies: bool, gradients: bool) -> None:
        self._rows, self._wanted = rows, wanted
        zero = rows.new_zeros(len(rows), dtype=torch.float32)
        self._most = zero + torch.finfo(torch.float32).min  # the largest logit so far
        self._right = zero
        self._total = zero  # of exp(logit - most)
        self._mean = zero if entropies else None  # of exp(logit - most) (logit - most)
        # Of exp(logit - most) times the weights.
        self._expected = rows.new_zeros(rows.shape, dtype=torch.float32) if gradients else None

    def add_all(self, weight: Tensor) -> None:
        """Run through all of a head's `weight`, [vocabulary, hidden]."""
        numbers = _BLOCK.get(weight.device.type, _BLOCK["cuda"])
        columns = min(len(weight), max(1, numbers // len(self._rows)))
        room = weight.new_empty(len(self._rows) * columns)
        for start in range(0, len(weight), columns):
            part = weight[start : start + columns]
            into = room[: len(self._rows) * len(part)].view(len(self._rows), len(part))
            self._add(part, start, torch.mm(self._rows, part.t(), out=into).float())

    def _add(self, part: Tensor, start: int, logits: Tensor) -> None:
        """Add `part` of the weights, from token `start` on; `logits` are overwritten."""
        at = self._wanted - start
        own = logits.gather(1, at.clamp(0, len(part) - 1)[:, None]).squeeze(1)
        self._right = torch.where((at >= 0) & (at < len(part)), own, self._right)
        most = torch.maximum(self._most, logits.amax(1))
        shift, self._most = self._most - most, most
        kept = shift.exp()
        logits.sub_(most[:, None])
        if self._mean is not None:
            self._mean = kept * (self._mean + shift * self._total) + _weighed_sums(logits)
        exponentials = logits.exp_()
        self._total = kept * self._total + exponentials.sum(1)
        if self._expected is None:
            return
        self._expected.mul_(kept[:, None])
        if part.dtype == torch.float32:
            self._expected.addmm_(exponentials, part)
        else:
            self._expected.add_(torch.mm(exponentials.to(part.dtype), part))

    def losses(self) -> Tensor:
        """-log softmax at what was wanted."""
        return self._most + self._total.log() - self._right

    def entropies(self) -> Tensor:
        """Of each row's softmax, nats."""
        assert self._mean is not None
        return self._total.log() - self._mean / self._total

    def expected(self) -> Tensor:
        """The mean of the weights under the softmax, [rows, hidden]."""
        assert self._expected is not None
        return self._expected / self._total[:, None]


def _weighed_sums(centred: Tensor) -> Tensor:
    """sum(exp(c) c) of every row, a few rows at a time: the logits are not copied whole."""
    return torch.cat([torch.linalg.vecdot(few.exp(), few) for few in torch.split(centred, _FEW)])


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, entropies: Tensor | None
    ) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), _ROWS):
            rows = slice(start, start + _ROWS)
            own, wanted = hidden[rows].to(weight.dtype), target[rows]
            sums = _Sums(own, wanted, entropies is not None, gradient is not None)
            sums.add_all(weight)
            losses[rows] = sums.losses()
            if entropies is not None:
                entropies[rows] = sums.entropies()
            if gradient is not None:
                gradient[rows] = (sums.expected() - weight[wanted]).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        if gradient is None:
            return None, None, None, None
        return gradient * upstream[0][:, None].to(gradient), None, None, None
