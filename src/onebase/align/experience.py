"""Experience: a policy's answers, and what policy, reference, value and reward model say of them.

Reference and reward model read them in one mixed pass. What the policy says it has said as it drew them,
and is taken from there where everything is computed in fp32; in 16 bits the numbers of single draws are
not quite those of a whole text, and it is in the mixed pass too. The value model reads them from the
trunk upwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onebase.adapters.adapter import Adapter
from onebase.adapters.contribution import Contribution
from onebase.align.answers import mask_of, packs
from onebase.align.rewards import FunctionReward, LearnedReward, Reward
from onebase.align.rollout import POLICY, Rollout
from onebase.align.trainee import Trainee
from onebase.data.template import Template
from onebase.engine.rows import TokenRow, read_rows
from onebase.engine.sampling import Sampling
from onebase.engine.trunk import Trunk
from onebase.model.base import Base
from onebase.training.loop import pack_tokens

REFERENCE, VALUE, REWARD = "reference", "value", "reward"
ENTROPY = "entropy"


class RolloutOptions(BaseModel):
    """How answers are drawn: `samples` answers to each of `prompts` prompts a step, of at most
    `max_tokens`, at `temperature` (the policy whose log-probabilities count is the one at that
    temperature). Before `min_tokens` the end token is not drawn, which the log-probabilities don't
    know of. An answer that was cut off loses `cut_penalty`; one that came to its end gets
    `end_bonus`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompts: int = Field(16, ge=1)
    samples: int = Field(1, ge=1)
    max_tokens: int = Field(32, ge=1)
    min_tokens: int = Field(0, ge=0)
    temperature: float = Field(1.0, gt=0)
    cut_penalty: float = Field(0.0, ge=0)
    end_bonus: float = Field(0.0, ge=0)


@dataclass
class Models:
    """The four models of one base. `value` is None for group advantages; `template` writes the
    policy's prompts, and says where its answers end.
    """

    base: Base
    template: Template
    policy: Trainee
    reference: Contribution
    value: Trainee | None
    reward: Reward


@dataclass(frozen=True)
class Experience:
    """Rollouts and what the models said of them before the policy moved; tensors are [answers,
    tokens] on the base's device but `scores`, [answers]: the reward with bonus and penalty, and
    `raw`, without. `trunk` keeps what enters the layers of the value model.
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

    @property
    def divergences(self) -> Tensor:
        """log policy - log reference, summed over each answer, [answers]."""
        return ((self.logprobs - self.reference) * self.mask).sum(1)


def sampling(options: RolloutOptions, seed: int) -> Sampling:
    """How the rollouts of one step are drawn: from the whole distribution."""
    return Sampling(
        max_tokens=options.max_tokens,
        min_tokens=min(options.min_tokens, options.max_tokens),
        temperature=options.temperature,
        seed=seed,
    )


def experience(models: Models, rollouts: list[Rollout], options: RolloutOptions) -> Experience:
    """What every model says of the rollouts, in mixed passes without gradient."""
    base, reward = models.base, models.reward
    own: dict[str, Contribution] = {REFERENCE: models.reference}
    said = base.precision.compute == torch.float32
    if not said:
        own[POLICY] = _still(models.policy.adapter)
    if isinstance(reward, LearnedReward):
        own[REWARD] = reward.contribution
    units = [_rows(models, item, own) for item in rollouts]
    parts: dict[str, list[Tensor]] = {}
    if said:
        parts[POLICY] = [torch.tensor(item.logprobs, device=base.device) for item in rollouts]
        parts[ENTROPY] = [torch.tensor(item.entropies, device=base.device) for item in rollouts]
    raw: list[float] = []
    with torch.no_grad():
        for group in packs(units, pack_tokens(base.device)):
            rows = [row for index in group for row in units[index]]
            output, placed = read_rows(
                base, rows, own, temperature=options.temperature, entropies=not said
            )
            for number, row in enumerate(rows):
                if row.adapter in (POLICY, REFERENCE):
                    mine = (placed.row == number).to(output.losses.device)
                    parts.setdefault(str(row.adapter), []).append(-output.losses[mine])
                    if row.adapter == POLICY:
                        parts.setdefault(ENTROPY, []).append(output.entropies[mine])
                    continue
                states = output.states[(placed.hidden_state_row == number).to(output.states.device)]
                if isinstance(reward, LearnedReward):
                    raw.append(reward.standard(float(reward.head(states)[0])))
    if isinstance(reward, FunctionReward):
        raw = [reward(item.prompt, item.text) for item in rollouts]
    trunk = None if models.value is None else Trunk(base)
    ends = [options.end_bonus if item.ended else -options.cut_penalty for item in rollouts]
    scores = torch.tensor(raw, device=base.device)
    return Experience(
        rollouts=rollouts,
        mask=mask_of([item.tokens for item in rollouts], base.device),
        logprobs=_padded(parts[POLICY]),
        reference=_padded(parts[REFERENCE]),
        entropies=_padded(parts[ENTROPY]),
        values=None if models.value is None else _values(base, models.value, rollouts, trunk),
        raw=scores,
        scores=scores + torch.tensor(ends, device=base.device),
        trunk=trunk,
    )


def _values(base: Base, value: Trainee, rollouts: list[Rollout], trunk: Trunk | None) -> Tensor:
    """The value model's expectation before every token, [answers, tokens]."""
    rows = [item.tokens.valued_by(VALUE) for item in rollouts]
    own = {VALUE: _still(value.adapter)}
    values: list[Tensor] = []
    with torch.no_grad():
        for group in packs([[row] for row in rows], pack_tokens(base.device)):
            asked = [rows[index] for index in group]
            output, placed = read_rows(base, asked, own, trunk=trunk)
            states = value.head(output.states)
            row_of = placed.hidden_state_row.to(states.device)
            values += [states[row_of == number] for number in range(len(group))]
    return _padded(values)


def _still(adapter: Adapter) -> Contribution:
    adapter.eval()
    with torch.no_grad():
        return adapter.contribution()


def _padded(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)


def _rows(models: Models, item: Rollout, own: Mapping[str, Contribution]) -> list[TokenRow]:
    """The rows of one rollout: as reference and reward model read it, and the policy where it is among
    `own`.
    """
    rows = [item.tokens.written_by(name) for name in (POLICY, REFERENCE) if name in own]
    if isinstance(models.reward, LearnedReward):
        rows.append(models.reward.text(item.prompt, item.text).scored_by(REWARD))
    return rows
