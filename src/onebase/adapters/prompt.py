"""Virtual tokens: prompt tuning (Lester et al. 2021) and P-tuning (Liu et al. 2021).

Both learn embeddings that stand before the text. Prompt tuning learns them directly; P-tuning
learns a prompt encoder, an LSTM or an MLP, that produces them while training. The encoder is
gone from the served adapter, which holds its output.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

Initialisation = Literal["text", "vocab", "random"]


class PromptTuningOptions(BaseModel):
    """`virtual_tokens` before the text; `init`: from the embeddings of a `text` (`init_text`, or
    else the task's instruction), of tokens drawn from the `vocab`, or `random`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    virtual_tokens: int = Field(20, ge=1, le=1024)
    init: Initialisation = "text"
    init_text: str | None = None


class PTuningOptions(BaseModel):
    """As for prompt tuning, and the prompt `encoder` with its `hidden` size and, for the LSTM,
    its number of `encoder_layers`.

    With `init` text or vocab the encoder's output is added to those embeddings and starts at
    zero (as in residual prompt tuning, Razdaibiedina et al. 2023); `random` is the paper's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    virtual_tokens: int = Field(20, ge=1, le=1024)
    init: Initialisation = "text"
    init_text: str | None = None
    encoder: Literal["lstm", "mlp"] = "mlp"
    hidden: int = Field(256, ge=1)
    encoder_layers: int = Field(2, ge=1, le=8)


class PromptEmbedding(nn.Module):
    """The virtual tokens' embeddings themselves, [tokens, hidden]."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Parameter(start.clone())

    def forward(self) -> Tensor:
        """The embeddings, [tokens, hidden]."""
        return self.embedding


class PromptEncoder(nn.Module):
    """P-tuning's encoder: embeddings, then a BiLSTM and an MLP, or an MLP alone (eq. 5-6).

    `start`, [tokens, hidden], is what the encoder's output is added to; None for the paper's
    form, in which the output stands alone.
    """

    start: Tensor | None

    def __init__(
        self, tokens: int, width: int, *, kind: str, hidden: int, layers: int, start: Tensor | None
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.lstm: nn.LSTM | None = None
        if kind == "lstm":
            self.lstm = nn.LSTM(width, hidden, layers, bidirectional=True, batch_first=True)
            self.mlp = nn.Sequential(
                nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width)
            )
        else:
            self.mlp = nn.Sequential(
                nn.Linear(width, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, width),
            )
        self.register_buffer("start", None if start is None else start.clone())
        if start is not None:
            nn.init.zeros_(self.mlp[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.mlp[-1].bias)  # type: ignore[arg-type]

    def forward(self) -> Tensor:
        """The virtual tokens' embeddings, [tokens, hidden]."""
        embeddings = self.embedding.weight
        if self.lstm is not None:
            embeddings = self.lstm(embeddings[None])[0][0]
        output: Tensor = self.mlp(embeddings)
        return output if self.start is None else self.start + output


def tiled(ids: list[int], length: int) -> list[int]:
    """`ids` repeated or cut to `length`, as PEFT's TEXT initialisation does."""
    return (ids * (length // len(ids) + 1))[:length]


def random_tokens(vocabulary: int, count: int) -> list[int]:
    """`count` token ids drawn uniformly from the vocabulary."""
    drawn: list[int] = torch.randint(0, vocabulary, (count,)).tolist()
    return drawn
