"""A scalar head: maps the hidden state at a token to one number, a score or a value."""

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """A linear map to one number, without bias: the `score` layer of a transformers sequence
    classifier with one label. `weight` is [1, hidden] and starts at zero.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden))

    def forward(self, states: Tensor) -> Tensor:
        """The score of each state in fp32: [states, hidden] to [states]."""
        return states.float() @ self.weight[0].float()
