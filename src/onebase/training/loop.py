"""The joint loop: jobs of any methods are trained in the same passes over one frozen base."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch

from onebase.adapters.contribution import Contribution
from onebase.engine.rows import TokenRow, by_budget, token_losses
from onebase.engine.trunk import Trunk
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.training.job_state import JobState

# Tokens in one pass, by kind of device. On a CPU larger packs hardly speed up the products, and
# memory grows with them; a GPU waits for its next kernel when packs are small (LOG.md).
_PACK_TOKENS = {"cpu": 1024, "cuda": 4096}

# Gets a row and the sum of its labels' losses (nats).
OnRow = Callable[[TokenRow, float], None]


def pack_tokens(device: torch.device) -> int:
    """The tokens of one training pass on `device`, give or take a quarter; an evaluation's pass takes
    twice as many.
    """
    return _PACK_TOKENS.get(device.type, _PACK_TOKENS["cuda"])


class BetweenSteps(Protocol):
    """What happens between two joint steps, such as saving a checkpoint."""

    def between_steps(self, *, evaluated: bool = False) -> None:
        """Between two joint steps; `evaluated`: after an evaluation. May raise KeyboardInterrupt."""

    def check(self) -> None:
        """Between two passes of an evaluation. May raise KeyboardInterrupt, to abandon it."""


def train_together(
    states: Sequence[JobState], observer: Observer, run: BetweenSteps | None = None
) -> None:
    """Train every job from its present step to its end, and load its best state by its own held-out
    loss. Jobs on one base are trained in the same passes; those with a base of their own one after
    another.

    A job's numbers are those it would have alone: its rows, order, optimizer and normalisation are its
    own, and segments of other jobs in a pack are invisible to it. A job whose loss explodes or is no
    longer finite ends there; the others go on.
    """
    for base in dict.fromkeys(state.base for state in states):
        jobs = [state for state in states if state.base is base]
        check = run.check if run else None
        # All of them, whether done or not: a resumed session computes the same to the last bit.
        trunk = None if all(job.done for job in jobs) else shared_trunk(base, jobs, check)
        while True:
            due = [job for job in jobs if job.evaluation_due]
            if due:
                evaluate_together(base, due, observer, check, trunk=trunk)
            if run:
                run.between_steps(evaluated=bool(due))
            active = [job for job in jobs if not job.done]
            if not active:
                break
            step_together(base, active, observer, trunk=trunk)
        for job in jobs:
            job.trainable.load_best()


def shared_trunk(
    base: Base, jobs: Sequence[JobState], check: Callable[[], None] | None = None
) -> Trunk | None:
    """The frozen trunk of the jobs that begin above the base's first layer, with all their rows
    computed; None without such a job. It is in fp32 if any of them is.
    """
    kinds = {job.options.trunk for job in jobs if job.depth}
    if not kinds:
        return None
    trunk = Trunk(base, dtype="fp32" if "fp32" in kinds else "fp16")
    for job in jobs:
        if trunk.usable(job.depth):
            rows = [*job.data.train, *job.data.held_out]
            trunk.prepare(job.depth, [row.ids for row in rows], check)
    return trunk


def step_together(
    base: Base, jobs: Sequence[JobState], observer: Observer, *, trunk: Trunk | None = None
) -> None:
    """One optimizer step of every job: pack, pass, backward, update. Jobs that begin above the first
    layer take its input from `trunk`.
    """
    began = time.perf_counter()
    batches = {job.task: job.next_batch() for job in jobs}
    for job in jobs:
        job.adapter.train()
    losses = _gradients(base, jobs, batches, trunk)
    finite = [job.is_finite(losses[job.task]) for job in jobs]
    if len(jobs) > 1 and not all(finite):
        # What isn't finite spreads through a shared pass (0 * inf is not 0): each job by itself.
        losses = {}
        for job in jobs:
            job.trainable.discard_gradients()
            losses |= _gradients(base, [job], batches, trunk)
        finite = [job.is_finite(losses[job.task]) for job in jobs]
    for job, is_finite in zip(jobs, finite, strict=True):
        job.trouble = job.record_loss(losses[job.task]) if is_finite else "not finite"
    elapsed = time.perf_counter() - began
    for job in jobs:
        if job.trouble:
            job.trainable.discard_gradients()
            continue
        norm, rate = job.update()
        tokens = sum(len(row.ids) for micro_batch in batches[job.task] for row in micro_batch)
        job.tokens += tokens
        job.seconds += elapsed
        record = {
            "epoch": job.epoch,
            "loss": losses[job.task],
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens": job.tokens,
            "tokens_per_second": tokens / elapsed,
        }
        observer.step(job.task, job.step, record)


def _gradients(
    base: Base,
    jobs: Sequence[JobState],
    batches: Mapping[str, list[list[TokenRow]]],
    trunk: Trunk | None,
) -> dict[str, float]:
    """The losses of the jobs' batches, by task in their order; gradients are accumulated."""
    micro_batches = {job.task: batches[job.task] for job in jobs}
    losses = dict.fromkeys(micro_batches, 0.0)
    mixed = base.device.type == "cuda" and any(
        job.adapter.options.get("mixed_precision") for job in jobs
    )
    # Exact, so a job that did not ask for it loses nothing but time.
    checkpointing = any(job.options.gradient_checkpointing for job in jobs)
    depths = {job.task: job.depth for job in jobs}
    labels = {
        task: sum(row.labels for rows in parts for row in rows)
        for task, parts in micro_batches.items()
    }
    for turn in range(max(len(parts) for parts in micro_batches.values())):
        rows = [
            row
            for parts in micro_batches.values()
            for row in (parts[turn] if turn < len(parts) else [])
        ]
        for group, group_trunk in _packs(rows, pack_tokens(base.device), depths, trunk):
            tasks = {row.adapter for row in group}
            contributions = {
                job.task: job.adapter.contribution() for job in jobs if job.task in tasks
            }
            with torch.autocast(base.device.type, torch.bfloat16, enabled=mixed):
                token_loss, row_of = token_losses(
                    base, group, contributions, checkpointing=checkpointing, trunk=group_trunk
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
    """Rows in packs of about `tokens` tokens, those that begin at one layer together, and the trunk for
    the packs that begin above the first.
    """
    by_layer: dict[int, list[TokenRow]] = {}
    for row in rows:
        depth = depths.get(str(row.adapter), 0)
        by_layer.setdefault(depth if trunk and trunk.usable(depth) else 0, []).append(row)
    for layer, layer_rows in by_layer.items():
        for group in by_budget(layer_rows, tokens):
            yield group, trunk if layer else None


def evaluate_together(
    base: Base,
    jobs: Sequence[JobState],
    observer: Observer,
    check: Callable[[], None] | None = None,
    *,
    trunk: Trunk | None = None,
    on_row: OnRow | None = None,
) -> None:
    """The held-out loss of every job, in shared passes; keeps the best states. `check` is called after
    every pass; what it raises leaves the jobs as they were. `on_row` gets every row's loss.
    """
    depths = {job.task: job.depth for job in jobs}
    contributions = {job.task: job.adapter.contribution_in_evaluation() for job in jobs}

    def means_over(rows: Sequence[TokenRow]) -> dict[str, float]:
        return mean_losses(
            base, rows, contributions, check, depths=depths, trunk=trunk, on_row=on_row
        )

    means = means_over([row for job in jobs for row in job.data.held_out])
    if len(means) > 1 and not all(map(math.isfinite, means.values())):
        for job in jobs:  # as in a step: each job by itself
            means |= means_over(job.data.held_out)
    for job in jobs:
        loss = means.get(job.task)
        if loss is not None and not math.isfinite(loss):
            job.trouble = "not finite"
            continue
        best = job.record_evaluation(loss)
        if loss is not None:
            record = {"epoch": job.epoch, "eval_loss": loss, "best": best}
            observer.evaluated(job.task, job.step, record)


def base_losses(
    base: Base, jobs: Sequence[JobState], check: Callable[[], None] | None = None
) -> dict[str, float]:
    """Each job's held-out loss under the bare base, with the job's instruction alone."""
    rows = [(job.task, row.bare()) for job in jobs for row in job.data.held_out]
    return _mean_by(base, rows, {}, check, {}, None)


def mean_losses(
    base: Base,
    rows: Sequence[TokenRow],
    contributions: Mapping[str, Contribution],
    check: Callable[[], None] | None = None,
    *,
    depths: Mapping[str, int] | None = None,
    trunk: Trunk | None = None,
    on_row: OnRow | None = None,
) -> dict[str, float]:
    """The mean loss of a label (nats) over every adapter's rows, without gradients. `depths` is the layer
    at which an adapter may begin, from `trunk`. `on_row` gets every row's loss.
    """
    named = [(str(row.adapter), row) for row in rows]
    return _mean_by(base, named, contributions, check, depths or {}, trunk, on_row)


def _mean_by(
    base: Base,
    rows: Sequence[tuple[str, TokenRow]],
    contributions: Mapping[str, Contribution],
    check: Callable[[], None] | None,
    depths: Mapping[str, int],
    trunk: Trunk | None,
    on_row: OnRow | None = None,
) -> dict[str, float]:
    """The mean loss of a label over all rows with one name."""
    total: dict[str, float] = {}
    count: dict[str, int] = {}
    names = {id(row): name for name, row in rows}
    bare_rows = [row for _, row in rows]
    for row, loss in row_losses(base, bare_rows, contributions, check, depths=depths, trunk=trunk):
        name = names[id(row)]
        total[name] = total.get(name, 0.0) + loss
        count[name] = count.get(name, 0) + row.labels
        if on_row:
            on_row(row, loss)
    return {name: total[name] / count[name] for name in total}


def row_losses(
    base: Base,
    rows: Sequence[TokenRow],
    contributions: Mapping[str, Contribution],
    check: Callable[[], None] | None = None,
    *,
    depths: Mapping[str, int] | None = None,
    trunk: Trunk | None = None,
) -> Iterator[tuple[TokenRow, float]]:
    """Every row with the sum of its labels' losses (nats), without gradients; in the order of the packs.
    `check` is called after every pass.
    """
    for group, group_trunk in _packs(rows, 2 * pack_tokens(base.device), depths or {}, trunk):
        with torch.no_grad():
            losses, row_of = token_losses(base, group, contributions, trunk=group_trunk)
        sums = torch.zeros(len(group), dtype=torch.float64).index_add_(
            0, row_of.cpu(), losses.double().cpu()
        )
        yield from zip(group, sums.tolist(), strict=True)
        if check:
            check()


def _add_by_task(
    losses: dict[str, float], group: Sequence[TokenRow], values: torch.Tensor, row_of: torch.Tensor
) -> None:
    sums = torch.zeros(len(group)).index_add_(0, row_of.cpu(), values.float().cpu())
    for index, row in enumerate(group):
        losses[str(row.adapter)] += float(sums[index])
