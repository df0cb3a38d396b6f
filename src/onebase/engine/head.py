"""The loss of labels straight from what enters a frozen language-model head.

Logits over a large vocabulary are the largest tensors of a training step, and autograd keeps them
twice. With frozen weights the gradient is known as soon as the loss is, so both are computed here
block by block, and no logits outlive their block. The same numbers, in less memory and time.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Logits of one block, in numbers: enough rows that the weights are read seldom.
_BLOCK = 1 << 26
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


def _weighed_sums(centred: Tensor) -> Tensor:
    """sum(exp(c) c) of every row, a few rows at a time: the logits are not copied whole."""
    return torch.cat([torch.linalg.vecdot(few.exp(), few) for few in torch.split(centred, _FEW)])


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, entropies: Tensor | None
    ) -> Tensor:
        labels = len(hidden)
        block = max(1, min(labels, _BLOCK // len(weight)))
        losses = torch.empty(labels, dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        room = weight.new_empty(block, len(weight))
        for start in range(0, labels, block):
            rows = slice(start, min(start + block, labels))
            own, wanted = hidden[rows].to(weight.dtype), target[rows]
            logits = torch.mm(own, weight.t(), out=room[: len(own)]).float()
            right = logits.gather(1, wanted[:, None]).squeeze(1)
            most = logits.amax(1)
            logits.sub_(most[:, None])
            mean = None if entropies is None else _weighed_sums(logits)
            exponentials = logits.exp_()
            total = exponentials.sum(1)
            losses[rows] = most + total.log() - right
            if entropies is not None and mean is not None:
                entropies[rows] = total.log() - mean / total
            if gradient is not None:
                expected = torch.mm(exponentials.to(weight.dtype), weight) / total[:, None]
                gradient[rows] = (expected - weight[wanted]).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        if gradient is None:
            return None, None, None, None
        return gradient * upstream[0][:, None].to(gradient), None, None, None
