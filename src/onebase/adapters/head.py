"""A scalar head: one number for a text, from what enters the language-model head at a token."""

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """A linear map to one number, without bias: transformers' `score` of a sequence classifier with
    one label. `weight` is [1, hidden]; fresh, it is zero, and so is every score.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden))

    def forward(self, states: Tensor) -> Tensor:
        """The score of every state in fp32: [states, hidden] to [states]."""
        return states.float() @ self.weight[0].float()
