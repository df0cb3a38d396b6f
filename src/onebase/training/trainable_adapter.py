"""An adapter with its optimizer, while it is trained, and its best state so far."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution
from onebase.adapters.scalar_head import ScalarHead
from onebase.errors import OnebaseError
from onebase.language import say
from onebase.model.base import Base
from onebase.training.job import Job
from onebase.training.learning_rate import parameter_groups


class NotFinite(OnebaseError, ArithmeticError):
    """Gradients that are no longer finite."""

    code = "not_finite"


class TrainableAdapter:
    """An adapter and AdamW over its parameters, with each method's learning rate from `job`.

    `max_norm` is the largest gradient norm. A scalar head, where the adapter has one, is trained at
    `head_rate`. `had_gradient` says whether any step had a gradient other than 0.
    """

    def __init__(
        self,
        base: Base,
        adapter: Adapter,
        job: Job,
        *,
        max_norm: float,
        weight_decay: float = 0.0,
        head_rate: float = 0.0,
    ) -> None:
        self.base = base
        self.adapter = adapter
        self._max_norm = max_norm
        groups = parameter_groups(adapter, job)
        if adapter.head is not None:
            head = list(adapter.head.parameters())
            groups.append({"params": head, "lr": head_rate, "betas": (0.9, 0.999)})
        self._peak_rates = [float(group["lr"]) for group in groups]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
        self.best: dict[str, Tensor] | None = None
        self.had_gradient = False

    @property
    def head(self) -> ScalarHead:
        """The scalar head, of an adapter that has one."""
        assert self.adapter.head is not None, "no head"
        return self.adapter.head

    def train_without_dropout(self) -> None:
        """Training mode, but no dropout: the losses are those of the whole adapter."""
        self.adapter.train()  # an LSTM on a GPU has gradients in no other mode
        if self.adapter.lora is not None:
            self.adapter.lora.eval()

    def contribution(self) -> Contribution:
        """What it adds to a forward pass, with gradients."""
        return self.adapter.contribution()

    def frozen(self) -> Contribution:
        """What it adds to a forward pass as it is now, without gradients; later steps don't change it."""
        still = copy.deepcopy(self.adapter).eval().requires_grad_(False)
        return still.contribution()

    def gradient_norm(self) -> float:
        """The norm of all gradients; changes nothing."""
        gradients = [p.grad for p in self.adapter.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def discard_gradients(self) -> None:
        """Forget the gradients of a step."""
        self.optimizer.zero_grad(set_to_none=True)

    def update(self, factor: float) -> tuple[float, float]:
        """One optimizer step at `factor` of the peak learning rates. Returns the gradient norm before
        clipping and the learning rate (the first method's). Raises NotFinite, with nothing changed.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self._max_norm))
        if not math.isfinite(norm):
            raise NotFinite(
                say(
                    "The gradients are no longer finite: nothing is stored.",
                    "梯度已不是有限值：不保存结果。",
                ),
                say(
                    "Lower the learning_rate and start again.", "请减小 learning_rate 后重新开始。"
                ),
            )
        self.had_gradient = self.had_gradient or norm > 0
        for group, peak in zip(self.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        self.discard_gradients()
        return norm, self._peak_rates[0] * factor

    def keep_best(self) -> None:
        """Keep the present state as the best one."""
        self.best = self.adapter.parts()

    def load_best(self) -> None:
        """Return to the best state, where one was kept."""
        if self.best is not None:
            self.adapter.load_state_dict(self.best)

    def state_dict(self, *, weights: bool = True, best: bool = True) -> dict[str, Any]:
        """Its part of a checkpoint, without the `weights` and the optimizer, or without the `best` state,
        if these are not needed to continue.
        """
        lora = self.adapter.lora
        return {
            "adapter": self.adapter.state_dict() if weights else None,
            "optimizer": self.optimizer.state_dict() if weights else None,
            "best": self.best if best else None,
            "moved": self.had_gradient,
            "drawn": None if lora is None else lora.drawn,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        if state["adapter"] is not None:
            self.adapter.load_state_dict(state["adapter"])
            self.optimizer.load_state_dict(state["optimizer"])
        best = state["best"]
        self.best = None if best is None else {k: v.to(self.base.device) for k, v in best.items()}
        self.had_gradient = state.get("moved", True)  # format 1 does not say
        if self.adapter.lora is not None:
            self.adapter.lora.drawn = state["drawn"]
