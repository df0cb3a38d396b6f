"""Experience: answers of the policy, and what policy, reference, value and reward model compute of them.

Reference and reward model read the answers in one mixed pass. The policy's log-probabilities are recorded
while sampling; in 16 bits, where those of single tokens differ slightly from those of a whole text, the
policy reads the answers in the mixed pass too. The value model starts above the frozen trunk.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onebase.adapters.contribution import Contribution
from onebase.align.answers import answer_mask, packs
from onebase.align.ppo_options import RolloutOptions
from onebase.align.rewards import FunctionReward, LearnedReward, Reward
from onebase.align.rollout import POLICY, Rollout
from onebase.data.template import Template
from onebase.engine.rows import TokenRow, read_rows
from onebase.engine.trunk import Trunk
from onebase.model.base import Base
from onebase.training.loop import pack_tokens
from onebase.training.trainable_adapter import TrainableAdapter

REFERENCE, VALUE, REWARD = "reference", "value", "reward"
ENTROPY = "entropy"


@dataclass
class Models:
    """The four models on one base; `value` is None for group advantages. `template` renders the policy's
    prompts and knows where its answers end.
    """

    base: Base
    template: Template
    policy: TrainableAdapter
    reference: Contribution
    value: TrainableAdapter | None
    reward: Reward


@dataclass(frozen=True)
class Experience:
    """Rollouts and what the models computed of them before any update. Tensors are [answers, tokens], on
    the base's device, except `scores`, [answers], the rewards with bonus and penalty, and `raw`, those
    without. `trunk` keeps the input of the value model's first layer.
    """

    rollouts: list[Rollout]
    mask: Tensor
    logprobs: Tensor
    reference: Tensor
    entropies: Tensor
    values: Tensor | None
    raw: Tensor
    scores: Tensor
    trunk: Trunk | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    @property
    def divergences(self) -> Tensor:
        """log policy - log reference, summed over each answer, [answers]."""
        return ((self.logprobs - self.reference) * self.mask).sum(1)

    def of(self, answers: list[int]) -> "Experience":
        """These answers, with tensors no longer than the longest of them."""
        longest = int(self.mask[answers].sum(1).max())

        def part(tensor: Tensor) -> Tensor:
            return tensor[answers, :longest]

        return Experience(
            rollouts=[self.rollouts[index] for index in answers],
            mask=part(self.mask),
            logprobs=part(self.logprobs),
            reference=part(self.reference),
            entropies=part(self.entropies),
            values=None if self.values is None else part(self.values),
            raw=self.raw[answers],
            scores=self.scores[answers],
            trunk=self.trunk,
            advantages=None if self.advantages is None else part(self.advantages),
            returns=None if self.returns is None else part(self.returns),
        )


def gather_experience(
    models: Models, rollouts: list[Rollout], options: RolloutOptions
) -> Experience:
    """Score the rollouts by all models, in mixed passes without gradients."""
    base, reward = models.base, models.reward
    readers: dict[str, Contribution] = {REFERENCE: models.reference}
    recorded = base.precision.compute == torch.float32  # while sampling
    if not recorded:
        readers[POLICY] = models.policy.adapter.contribution_in_evaluation()
    if isinstance(reward, LearnedReward):
        readers[REWARD] = reward.contribution
    units = [_rows(models, item, readers) for item in rollouts]
    parts: dict[str, list[Tensor]] = {}
    if recorded:
        parts[POLICY] = [torch.tensor(item.logprobs, device=base.device) for item in rollouts]
        parts[ENTROPY] = [torch.tensor(item.entropies, device=base.device) for item in rollouts]
    raw: list[float] = []
    with torch.no_grad():
        for group in packs(units, pack_tokens(base.device)):
            rows = [row for index in group for row in units[index]]
            output, placed = read_rows(
                base, rows, readers, temperature=options.temperature, entropies=not recorded
            )
            for number, row in enumerate(rows):
                if row.adapter in (POLICY, REFERENCE):
                    of_row = (placed.row == number).to(output.losses.device)
                    parts.setdefault(str(row.adapter), []).append(-output.losses[of_row])
                    if row.adapter == POLICY:
                        parts.setdefault(ENTROPY, []).append(output.entropies[of_row])
                    continue
                of_row = (placed.hidden_state_row == number).to(output.states.device)
                if isinstance(reward, LearnedReward):
                    score = float(reward.head(output.states[of_row])[0])
                    raw.append(reward.standardised(score))
    if isinstance(reward, FunctionReward):
        raw = [reward(item.prompt, item.text) for item in rollouts]
    trunk = None if models.value is None else Trunk(base)
    ends = [options.end_bonus if item.ended else -options.cut_penalty for item in rollouts]
    scores = torch.tensor(raw, device=base.device)
    return Experience(
        rollouts=rollouts,
        mask=answer_mask([item.tokens for item in rollouts], base.device),
        logprobs=_padded(parts[POLICY]),
        reference=_padded(parts[REFERENCE]),
        entropies=_padded(parts[ENTROPY]),
        values=None if models.value is None else _values(base, models.value, rollouts, trunk),
        raw=scores,
        scores=scores + torch.tensor(ends, device=base.device),
        trunk=trunk,
    )


def _values(
    base: Base, value: TrainableAdapter, rollouts: list[Rollout], trunk: Trunk | None
) -> Tensor:
    """The value model's expectation before every token, [answers, tokens]."""
    rows = [item.tokens.value_row(VALUE) for item in rollouts]
    readers = {VALUE: value.adapter.contribution_in_evaluation()}
    values: list[Tensor] = []
    with torch.no_grad():
        for group in packs([[row] for row in rows], pack_tokens(base.device)):
            group_rows = [rows[index] for index in group]
            output, placed = read_rows(base, group_rows, readers, trunk=trunk)
            states = value.head(output.states)
            row_of = placed.hidden_state_row.to(states.device)
            values += [states[row_of == number] for number in range(len(group))]
    return _padded(values)


def _padded(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)


def _rows(models: Models, item: Rollout, readers: Mapping[str, Contribution]) -> list[TokenRow]:
    """One rollout as each of the `readers` reads it."""
    rows = [item.tokens.logprob_row(name) for name in (POLICY, REFERENCE) if name in readers]
    if isinstance(models.reward, LearnedReward):
        rows.append(models.reward.text(item.prompt, item.text).score_row(REWARD))
    return rows
