"""An adapter: the parameters that one task trains on the frozen base, with any method."""

from typing import Any

import torch
from torch import Tensor, nn

from onebase.adapters.contribution import Contribution
from onebase.adapters.ia3 import Ia3
from onebase.adapters.lora import Lora
from onebase.adapters.prefix import DeepPrefix
from onebase.adapters.prompt import PromptEmbedding, PromptEncoder
from onebase.adapters.scalar_head import ScalarHead

PARTS = ("lora", "ia3", "prompt", "prefix", "full")


class Adapter(nn.Module):
    """One or several trainable parts: low-rank deltas, scaling vectors, virtual tokens, a KV prefix;
    or a whole model (`full`), which contributes nothing to a pass over another model.

    `method` is the method that built it (`lora+p-tuning` for two methods), `options` its settings
    as plain values. The last `placed` virtual tokens stand at marked places in the text, the others
    before it. A reward or value model also has a `head`.
    """

    def __init__(
        self,
        method: str,
        options: dict[str, Any],
        *,
        lora: Lora | None = None,
        ia3: Ia3 | None = None,
        prompt: PromptEmbedding | PromptEncoder | None = None,
        prefix: DeepPrefix | None = None,
        full: nn.Module | None = None,
        placed: int = 0,
        head: ScalarHead | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.options = options
        self.lora = lora
        self.ia3 = ia3
        self.prompt = prompt
        self.prefix = prefix
        self.full = full
        self.placed = placed
        self.head = head

    def contribution(self) -> Contribution:
        """What this adapter adds to a forward pass; gradients flow back through it."""
        virtual: Tensor | None = None if self.prompt is None else self.prompt()
        placed: Tensor | None = None
        if virtual is not None and self.placed:
            leading = len(virtual) - self.placed
            placed = virtual[leading:]
            virtual = virtual[:leading] if leading else None
        return Contribution(
            deltas={} if self.lora is None else self.lora.deltas(),
            scalings={} if self.ia3 is None else self.ia3.scalings(),
            virtual=virtual,
            placed=placed,
            prefix=None if self.prefix is None else self.prefix.keys_values(),
            masked_prefix=() if self.prefix is None else self.prefix.masked_prefix(),
        )

    def contribution_in_evaluation(self) -> Contribution:
        """As `contribution`, in evaluation mode and without gradients."""
        self.eval()
        with torch.no_grad():
            return self.contribution()

    @property
    def before_text(self) -> int:
        """The number of positions that virtual tokens and prefix take before a text."""
        with torch.no_grad():
            virtual = 0 if self.prompt is None else len(self.prompt()) - self.placed
        return virtual + (0 if self.prefix is None else self.prefix.embedding.num_embeddings)

    def trainable(self) -> int:
        """The number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def parts(self) -> dict[str, Tensor]:
        """A copy of all tensors by name, including prompt encoders."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}
