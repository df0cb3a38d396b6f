"""An adapter: what one task learns on the frozen base, by whatever method."""

from typing import Any

from torch import Tensor, nn

from onebase.adapters.contribution import Contribution
from onebase.adapters.lora import Lora
from onebase.adapters.prefix import DeepPrefix
from onebase.adapters.prompt import PromptEmbedding, PromptEncoder


class Adapter(nn.Module):
    """Up to three trainable parts: low-rank deltas, virtual tokens, a KV prefix.

    `method` is the name of the method that built it, `options` its settings as plain values.
    """

    def __init__(
        self,
        method: str,
        options: dict[str, Any],
        *,
        lora: Lora | None = None,
        prompt: PromptEmbedding | PromptEncoder | None = None,
        prefix: DeepPrefix | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.options = options
        self.lora = lora
        self.prompt = prompt
        self.prefix = prefix

    def contribution(self) -> Contribution:
        """What this adapter brings to one pass; gradients flow back through it."""
        return Contribution(
            deltas={} if self.lora is None else self.lora.deltas(),
            virtual=None if self.prompt is None else self.prompt(),
            prefix=None if self.prefix is None else self.prefix.keys_values(),
        )

    def trainable(self) -> int:
        """How many parameters training changes."""
        return sum(parameter.numel() for parameter in self.parameters())

    def parts(self) -> dict[str, Tensor]:
        """A copy of everything this adapter holds, encoders included."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
