"""Virtual tokens: prompt tuning (Lester et al. 2021) and P-tuning (Liu et al. 2021).

Both learn embeddings that stand before the text. Prompt tuning learns them directly. P-tuning
learns a prompt encoder, an LSTM or an MLP, that produces them in training; the saved adapter holds
only the encoder's output.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from onebase.adapters.option import StrictOptions, option


class VirtualTokenOptions(StrictOptions):
    """The options that every method with virtual tokens has."""

    virtual_tokens: int = option(
        20,
        "Number of virtual tokens; each takes a position of the context.",
        "虚拟词元的个数，每个虚拟词元占用一个上下文位置。",
        ge=1,
        le=1024,
    )
    init: Literal["text", "vocab", "random"] = option(
        "text",
        "Where the virtual tokens start from: text (see init_text), vocab (tokens "
        "drawn from the vocabulary) or random (no text at all).",
        "虚拟词元的初始值：text（见 init_text）、vocab（从词表中随机抽取词元）"
        "或 random（完全随机）。",
    )
    init_text: str | None = option(
        None,
        "Text to start from with init=text; without it, the task's instruction and, "
        "for classification, its labels.",
        "init=text 时作为初始值的文本；不给出则使用任务的指令，分类任务还包括标签。",
    )


class PromptTuningOptions(VirtualTokenOptions):
    """The options of `prompt-tuning`."""


class PTuningOptions(VirtualTokenOptions):
    """The options of `p-tuning`."""

    encoder: Literal["lstm", "mlp"] = option(
        "mlp",
        "Prompt encoder: mlp, or lstm (a bidirectional LSTM followed by an MLP). With "
        "init=text or vocab its output is added to the initial embeddings and starts at zero; "
        "with init=random it stands alone, as in the paper.",
        "提示编码器：mlp，或 lstm（双向 LSTM 后接 MLP）。init=text 或 vocab 时，"
        "其输出从零开始，加到初始嵌入上；init=random 时单独使用其输出，与论文一致。",
    )
    hidden: int = option(
        256,
        "Hidden size of the prompt encoder; with lstm, of each direction.",
        "提示编码器的隐藏层宽度；lstm 时为每个方向的宽度。",
        ge=1,
    )
    encoder_layers: int = option(
        2, "Number of LSTM layers; mlp ignores it.", "LSTM 的层数；mlp 忽略此项。", ge=1, le=8
    )


class PromptEmbedding(nn.Module):
    """The embeddings of the virtual tokens, learned directly."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Parameter(start.clone())

    def forward(self) -> Tensor:
        """The embeddings, [tokens, hidden]."""
        return self.embedding


class PromptEncoder(nn.Module):
    """P-tuning's encoder: embeddings, then a BiLSTM and an MLP, or an MLP alone (eq. 5-6).

    The encoder's output is added to `start`, [tokens, hidden]; with None it stands alone, as in the
    paper.
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
