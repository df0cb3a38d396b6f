"""An adapter and its optimizer, while it learns by one of this package's losses."""

import copy
from typing import Any

import torch
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution
from onebase.adapters.scalar_head import ScalarHead
from onebase.align.run import require_finite
from onebase.model.base import Base
from onebase.training.job import Job
from onebase.training.job_state import parameter_groups

# Preferences move a policy that can already answer: a tenth of the rate it learned that with.
RATE = 0.1


class Trainee:
    """What learns. `adapter` may have a scalar head, which then learns at `head_rate`.

    The job gives the method's learning rates; `clip` is the largest gradient norm.
    """

    def __init__(
        self,
        base: Base,
        adapter: Adapter,
        job: Job,
        *,
        clip: float,
        weight_decay: float = 0.0,
        head_rate: float = 0.0,
    ) -> None:
        self.base = base
        self.adapter = adapter
        self._clip = clip
        groups = parameter_groups(adapter, job)
        if adapter.head is not None:
            own = list(adapter.head.parameters())
            groups.append({"params": own, "lr": head_rate, "betas": (0.9, 0.999)})
        self._peaks = [float(group["lr"]) for group in groups]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
        self.best: dict[str, Tensor] | None = None
        self.moved = False  # whether any step had a gradient

    @property
    def head(self) -> ScalarHead:
        """The scalar head, of an adapter that has one."""
        assert self.adapter.head is not None, "no head"
        return self.adapter.head

    def learn_without_dropout(self) -> None:
        """Make ready for a step whose losses are of what the adapter says, nothing of it dropped."""
        self.adapter.train()  # an LSTM on a GPU has gradients in no other mode
        if self.adapter.lora is not None:
            self.adapter.lora.eval()

    def update(self, factor: float = 1.0) -> float:
        """One optimizer step at `factor` of the learning rates; returns the gradients' norm. Raises
        NotFinite, nothing changed, where that is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self._clip)
        require_finite(float(norm))
        self.moved = self.moved or float(norm) > 0
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def fixed(self) -> Contribution:
        """Its contribution as it is now, without gradient; later steps don't change it."""
        frozen = copy.deepcopy(self.adapter).eval().requires_grad_(False)
        return frozen.contribution()

    def keep_best(self) -> None:
        """Remember the present state as the best."""
        self.best = self.adapter.parts()

    def take_best(self) -> None:
        """Go back to the best state, where one was kept."""
        if self.best is not None:
            self.adapter.load_state_dict(self.best)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds of it."""
        lora = self.adapter.lora
        return {
            "adapter": self.adapter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "moved": self.moved,
            "drawn": None if lora is None else lora.drawn,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.adapter.load_state_dict(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.moved = state.get("moved", True)  # not in format 1
        device = self.base.device
        best = state["best"]
        self.best = None if best is None else {name: t.to(device) for name, t in best.items()}
        if self.adapter.lora is not None:
            self.adapter.lora.drawn = state["drawn"]
