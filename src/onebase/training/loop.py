"""The joint loop: jobs of any methods learn in the same passes over one frozen base."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from onebase.adapters.contribution import Contribution
from onebase.engine.rows import TokenRow, by_budget, token_losses
from onebase.engine.trunk import Trunk
from onebase.model.base import Base
from onebase.training.job_state import Learner

# Tokens in one pass, by kind of device. On a CPU larger packs hardly speed up the products, and
# memory grows with them; a GPU waits for its next kernel when packs are small (LOG.md).
_PACK_TOKENS = {"cpu": 1024, "cuda": 4096}


def pack_tokens(device: torch.device) -> int:
    """How many tokens one training pass takes on `device`, or a quarter more;
    an evaluation's takes twice as many.
    """
    return _PACK_TOKENS.get(device.type, _PACK_TOKENS["cuda"])


class Watcher(Protocol):
    """Who is told what happens: the run's record, the progress display."""

    def started(self, learners: Sequence[Learner]) -> None:
        """Before the first step."""

    def learned(self, learner: Learner, record: dict[str, Any]) -> None:
        """After each optimizer step of a job."""

    def judged(self, learner: Learner, record: dict[str, Any]) -> None:
        """After each evaluation of a job."""


class Keeper(Protocol):
    """Who keeps what has been learned."""

    def between(self, *, judged: bool) -> None:
        """Between two joint steps, `judged` after an evaluation. May raise KeyboardInterrupt."""

    def check(self) -> None:
        """Between two passes of an evaluation. May raise KeyboardInterrupt, to abandon it."""


def train_together(
    learners: Sequence[Learner], watcher: Watcher, keeper: Keeper | None = None
) -> None:
    """Train every job from where it stands to its end; each keeps its best state by its own
    held-out loss. Those on one base learn in the same passes, those with a base of their own one
    after another.

    A job's numbers are those it would have alone: its rows, order, optimizer and normalisation
    are its own, and segments of other jobs in a pack are invisible to it. A job whose loss
    explodes or is no longer finite ends there, alone.
    """
    watcher.started(learners)
    for base in dict.fromkeys(learner.base for learner in learners):
        own = [learner for learner in learners if learner.base is base]
        check = keeper.check if keeper else None
        # All of them, whether done or not: a resumed session finds the same to the last bit.
        trunk = None if all(one.done for one in own) else shared_trunk(base, own, check)
        while True:
            due = [learner for learner in own if learner.due]
            if due:
                evaluate_together(base, due, watcher, check, trunk=trunk)
            if keeper:
                keeper.between(judged=bool(due))
            active = [learner for learner in own if not learner.done]
            if not active:
                break
            step_together(base, active, watcher, trunk=trunk)
        for learner in own:
            learner.adapter.load_state_dict(learner.best)


def shared_trunk(
    base: Base, learners: Sequence[Learner], check: Callable[[], None] | None = None
) -> Trunk | None:
    """The frozen trunk of the jobs that begin above the base's first layer, all their rows run
    through it; None where there is no such job. One fp32 job makes it fp32.
    """
    kinds = {learner.options.trunk for learner in learners if learner.depth}
    if not kinds:
        return None
    trunk = Trunk(base, dtype="fp32" if "fp32" in kinds else "fp16")
    for learner in learners:
        if trunk.usable(learner.depth):
            rows = [*learner.data.train, *learner.data.held_out]
            trunk.prepare(learner.depth, [row.ids for row in rows], check)
    return trunk


def step_together(
    base: Base, learners: Sequence[Learner], watcher: Watcher, *, trunk: Trunk | None = None
) -> None:
    """One optimizer step of every job: pack, pass, backward, update. Jobs that begin above the
    first layer take what enters there from `trunk`.
    """
    began = time.perf_counter()
    batches = {learner.job.task: learner.next_batch() for learner in learners}
    for learner in learners:
        learner.adapter.train()
    losses = _gradients(base, learners, batches, trunk)
    if len(learners) > 1 and not all(map(_sound, learners, losses.values())):
        # What isn't finite spreads through a shared pass (0 * inf is no 0): each job by itself.
        losses = {}
        for learner in learners:
            learner.optimizer.zero_grad(set_to_none=True)
            losses |= _gradients(base, [learner], batches, trunk)
    for learner, loss in zip(learners, losses.values(), strict=True):
        learner.trouble = learner.trouble_with(loss)
    elapsed = time.perf_counter() - began
    tokens = {t: sum(len(r.ids) for part in parts for r in part) for t, parts in batches.items()}
    for learner in learners:
        task = learner.job.task
        if learner.trouble:
            learner.optimizer.zero_grad(set_to_none=True)
            continue
        norm, rate = learner.update()
        learner.tokens += tokens[task]
        learner.seconds += elapsed
        record = {
            "step": learner.step,
            "epoch": learner.epoch,
            "loss": losses[task],
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens": learner.tokens,
            "tokens_per_second": tokens[task] / elapsed,
        }
        watcher.learned(learner, record)


def _gradients(
    base: Base,
    learners: Sequence[Learner],
    batches: Mapping[str, list[list[TokenRow]]],
    trunk: Trunk | None,
) -> dict[str, float]:
    """The losses of the learners' batches, by task in their order; gradients are added up."""
    own = {learner.job.task: batches[learner.job.task] for learner in learners}
    losses = dict.fromkeys(own, 0.0)
    mixed = base.device.type == "cuda" and any(
        learner.adapter.options.get("mixed_precision") for learner in learners
    )
    # Exact, so a job that did not ask for it loses nothing but time.
    checkpointing = any(learner.options.gradient_checkpointing for learner in learners)
    depths = {learner.job.task: learner.depth for learner in learners}
    labels = {task: sum(r.labels for part in parts for r in part) for task, parts in own.items()}
    for turn in range(max(len(parts) for parts in own.values())):
        rows = [row for parts in own.values() for row in (parts[turn] if turn < len(parts) else [])]
        for group, above in _packs(rows, pack_tokens(base.device), depths, trunk):
            names = {row.adapter for row in group}
            contributions = {
                learner.job.task: learner.adapter.contribution()
                for learner in learners
                if learner.job.task in names
            }
            with torch.autocast(base.device.type, torch.bfloat16, enabled=mixed):
                token_loss, row_of = token_losses(
                    base, group, contributions, checkpointing=checkpointing, trunk=above
                )
            # Each job's own mean over the labels of its whole step, whatever the packs.
            weights = torch.tensor([1 / labels[str(row.adapter)] for row in group])
            weighted = token_loss * weights.to(token_loss)[row_of]
            weighted.sum().backward()  # type: ignore[no-untyped-call]
            _add_by_task(losses, group, weighted.detach(), row_of)
    return losses


def _packs(
    rows: Sequence[TokenRow], tokens: int, depths: Mapping[str, int], trunk: Trunk | None
) -> Iterator[tuple[list[TokenRow], Trunk | None]]:
    """Rows in packs of about `tokens` tokens, those that begin at one layer together, and the
    trunk for the packs that begin above the first.
    """
    by_layer: dict[int, list[TokenRow]] = {}
    for row in rows:
        depth = depths.get(str(row.adapter), 0)
        by_layer.setdefault(depth if trunk and trunk.usable(depth) else 0, []).append(row)
    for layer, own in by_layer.items():
        for group in by_budget(own, tokens):
            yield group, trunk if layer else None


def _sound(learner: Learner, loss: float) -> bool:
    """Whether a step's loss and gradients are finite."""
    gradients = [p.grad for p in learner.adapter.parameters() if p.grad is not None]
    return math.isfinite(loss) and math.isfinite(torch.nn.utils.get_total_norm(gradients))


def evaluate_together(
    base: Base,
    learners: Sequence[Learner],
    watcher: Watcher,
    check: Callable[[], None] | None = None,
    *,
    trunk: Trunk | None = None,
) -> None:
    """The held-out loss of every job, in shared passes; keeps the best states. `check` is called
    after every pass; what it raises leaves the jobs as they were.
    """
    depths = {learner.job.task: learner.depth for learner in learners}
    contributions: dict[str, Contribution] = {}
    for learner in learners:
        learner.adapter.eval()
        with torch.no_grad():
            contributions[learner.job.task] = learner.adapter.contribution()
    rows = [row for learner in learners for row in learner.data.held_out]
    means = mean_losses(base, rows, contributions, check, depths=depths, trunk=trunk)
    if len(means) > 1 and not all(map(math.isfinite, means.values())):
        for learner in learners:  # as in a step: each job by itself
            own = learner.data.held_out
            means |= mean_losses(base, own, contributions, check, depths=depths, trunk=trunk)
    for learner in learners:
        loss = means.get(learner.job.task)
        if loss is not None and not math.isfinite(loss):
            learner.trouble = "not finite"
            continue
        best = learner.judge(loss)
        if loss is not None:
            record = {"step": learner.step, "epoch": learner.epoch, "eval_loss": loss, "best": best}
            watcher.judged(learner, record)


def base_losses(
    base: Base, learners: Sequence[Learner], check: Callable[[], None] | None = None
) -> dict[str, float]:
    """Each job's held-out loss under the bare base with the job's instruction alone."""
    rows = [(learner.job.task, row.bare()) for learner in learners for row in learner.data.held_out]
    return _mean_by(base, rows, {}, check, {}, None)


def mean_losses(
    base: Base,
    rows: Sequence[TokenRow],
    contributions: Mapping[str, Contribution],
    check: Callable[[], None] | None = None,
    *,
    depths: Mapping[str, int] | None = None,
    trunk: Trunk | None = None,
) -> dict[str, float]:
    """The mean loss a label (nats) of every adapter's rows. No gradient. `depths` says at which
    layer an adapter may begin, from `trunk`.
    """
    named = [(str(row.adapter), row) for row in rows]
    return _mean_by(base, named, contributions, check, depths or {}, trunk)


def _mean_by(
    base: Base,
    rows: Sequence[tuple[str, TokenRow]],
    contributions: Mapping[str, Contribution],
    check: Callable[[], None] | None,
    depths: Mapping[str, int],
    trunk: Trunk | None,
) -> dict[str, float]:
    """The mean loss a label of all rows under one name."""
    total: dict[str, float] = {}
    count: dict[str, int] = {}
    names = {id(row): name for name, row in rows}
    for group, above in _packs(
        [row for _, row in rows], 2 * pack_tokens(base.device), depths, trunk
    ):
        with torch.no_grad():
            losses, row_of = token_losses(base, group, contributions, trunk=above)
        sums = torch.zeros(len(group), dtype=torch.float64).index_add_(
            0, row_of.cpu(), losses.double().cpu()
        )
        for row, loss in zip(group, sums.tolist(), strict=True):
            name = names[id(row)]
            total[name] = total.get(name, 0.0) + loss
            count[name] = count.get(name, 0) + row.labels
        if check:
            check()
    return {name: total[name] / count[name] for name in total}


def _add_by_task(
    losses: dict[str, float], group: Sequence[TokenRow], values: torch.Tensor, row_of: torch.Tensor
) -> None:
    sums = torch.zeros(len(group)).index_add_(0, row_of.cpu(), values.float().cpu())
    for index, row in enumerate(group):
        losses[str(row.adapter)] += float(sums[index])
