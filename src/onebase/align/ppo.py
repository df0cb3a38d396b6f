"""Proximal policy optimisation on one base: policy, reference, value and reward model are adapters of it.

The algorithm is that of Ouyang et al. 2022 (InstructGPT, section 3.5) with the clipped objective of
Schulman et al. 2017; with `advantage="group"` it is GRPO (Shao et al. 2024), without a value model.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.advantages import gae, group_advantages, whiten
from onebase.align.answers import packs, pad_by_row
from onebase.align.curves import draw_curves
from onebase.align.divergence import divergence
from onebase.align.experience import VALUE, Experience, Models, gather_experience
from onebase.align.job import AlignJob
from onebase.align.losses import explained_variance, masked_mean, policy_loss, value_loss
from onebase.align.ppo_options import PPOSettings
from onebase.align.ppo_setup import PPOSetup, set_up_ppo
from onebase.align.ppo_state import PPOState, evaluations_in
from onebase.align.preference_training import POLICY_RATE, store_aligned
from onebase.align.rewards import Prompt, distinct_2
from onebase.align.rollout import POLICY, roll_out
from onebase.align.unlearned import equal_rewards, no_gradient, nothing_better
from onebase.engine.rows import read_rows
from onebase.engine.sampling import Sampling
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.observer import JobStart, Observer
from onebase.runs.session import RunSession, run_session
from onebase.training.loop import pack_tokens
from onebase.training.trainable_adapter import TrainableAdapter

# Shares of a method's own learning rate. For LoRA a tenth changes nothing in ten steps; for a deep prefix a
# half moves it without a gain (LOG.md).
_RATES = {"lora": 0.5, "qlora": 0.5}
_EVALUATION_SEED = 1 << 32  # not one of the seeds of the steps
_SAMPLES = 4  # answers of an evaluation that are kept for the user


def train_ppo(
    job: AlignJob,
    reward: str,
    *,
    base: Base,
    workspace: Workspace | None = None,
    observer: Observer | None = None,
    restart: bool = False,
    run_id: str | None = None,
) -> StoredAdapter:
    """Train the task's policy on rewards for its own answers to the job's prompts, and store the best
    state on held-out prompts as the task's next version. The reference is the policy as it starts.

    `reward` is a function (`module:function` or `path/to/file.py:function`), or a task whose adapter is a
    reward model. An interrupted run of the same job continues, unless `restart`; with a `run_id` it must
    be that run. Raises UsageError or DataError before the first step, RewardError where a reward function
    fails (the run can be resumed), Interrupted after Ctrl-C.
    """
    workspace = workspace or Workspace()
    setup = set_up_ppo(job, reward, base, workspace, restart=restart, run_id=run_id)
    state, method = PPOState.of(setup), setup.start.adapter.method
    with run_session(
        setup.config, base, workspace, job.seed, earlier=setup.earlier, observer=observer
    ) as run:
        run.restore(state, [setup.start.template])
        state.evaluations = state.evaluations or evaluations_in(run.run.metrics())
        run.tell(job.task, setup.bad, setup.notes)
        title = f"{job.task} (PPO, {method})"
        run.recorder.started([JobStart(job.task, title, state.step, setup.settings.ppo.steps)])
        while not state.done:
            due = state.evaluation_due
            if due:
                _evaluate(state, run)
                if state.step == setup.settings.watch.judge_every and not state.varied:
                    run.note(equal_rewards(state.evaluations["last"]["eval_reward"]))
            run.between_steps(evaluated=due)
            record = ppo_step(state)
            run.recorder.step(job.task, state.step, record)
            reason, state.stopped = reason_to_stop(state, record)
            if reason:
                run.recorder.stopped(job.task, state.step, reason)
        if state.stopped:
            run.note(state.stopped)
        _evaluate(state, run)
        run.between_steps(evaluated=True)
        _draw(run)
        stored = _store(setup, state, workspace, run)
        run.summary = {"adapters": [stored.name], **stored.metrics}
    return stored


def ppo_step(state: PPOState) -> dict[str, float]:
    """One step: sample answers, score them, and update. Returns what was measured."""
    options, rollout, seed = state.settings.ppo, state.settings.rollout, state.step_seed
    prompts = [prompt for prompt in next(state.batches) for _ in range(rollout.samples)]
    experience = _experience(state.models, prompts, state.settings, seed)
    state.varied = state.varied or _varied(experience, state.settings)
    experience = _with_advantages(experience, state.settings, state.kl.value)
    rng = random.Random(seed)
    records = []
    for _ in range(options.epochs):
        order = rng.sample(range(len(prompts)), len(prompts))
        for at in range(0, len(order), options.minibatch):
            records.append(_update(state, experience, order[at : at + options.minibatch]))
    state.step += 1
    kl = float(experience.divergences.mean())
    state.kl.update(kl)
    entropy = float(masked_mean(experience.entropies, experience.mask))
    if state.first_entropy is None:
        state.first_entropy = entropy
    measured = {key: sum(record[key] for record in records) / len(records) for key in records[0]}
    if experience.values is not None and experience.returns is not None:
        measured["explained_variance"] = explained_variance(
            experience.values, experience.returns, experience.mask
        )
    return {
        "reward": float(experience.raw.mean()),
        "kl": kl,
        "entropy": entropy,
        "length": float(experience.mask.sum(1).float().mean()),
        "ended": sum(item.ended for item in experience.rollouts) / len(experience.rollouts),
        "distinct_2": distinct_2([item.text for item in experience.rollouts]),
        "penalty": state.kl.value,
        **measured,
    }


def _experience(
    models: Models, prompts: Sequence[Prompt], settings: PPOSettings, seed: int
) -> Experience:
    """Sample an answer to every prompt, and score them by all models."""
    options = settings.rollout
    sampling = Sampling(
        max_tokens=options.max_tokens,
        min_tokens=min(options.min_tokens, options.max_tokens),
        temperature=options.temperature,
        seed=seed,
    )
    rollouts = roll_out(models.base, models.policy.adapter, models.template, prompts, sampling)
    return gather_experience(models, rollouts, options)


def _with_advantages(
    experience: Experience, settings: PPOSettings, kl_coefficient: float
) -> Experience:
    """Add advantages, and, with a value model, the returns that it is trained on."""
    options = settings.ppo
    mask, scores = experience.mask, experience.scores
    if options.advantage == "group":
        samples = settings.rollout.samples
        scaled = group_advantages(scores, samples, mask, scale=options.whiten)
        return replace(experience, advantages=scaled)
    assert experience.values is not None
    penalties = divergence(experience.logprobs, experience.reference, options.estimator)
    rewards = torch.where(mask, -kl_coefficient * penalties, 0.0)
    last = mask.sum(1) - 1
    rewards[torch.arange(len(last), device=last.device), last] += scores
    advantages, returns = gae(
        rewards, experience.values, mask, gamma=options.gamma, lam=options.lam
    )
    advantages = whiten(advantages, mask) if options.whiten else advantages
    return replace(experience, advantages=advantages, returns=returns)


def _varied(experience: Experience, settings: PPOSettings) -> bool:
    """Whether answers have different scores, within a group where groups are compared."""
    scores, by_group = experience.scores, settings.ppo.advantage == "group"
    groups = scores.view(-1, settings.rollout.samples) if by_group else scores[None]
    return bool((groups != groups[:, :1]).any())


def _update(state: PPOState, experience: Experience, answers: Sequence[int]) -> dict[str, float]:
    """One optimizer step of policy and value model on these answers.

    Without dropout, as the answers were sampled and valued: before the first update the ratio is 1.
    """
    for trainable in state.trainables:
        trainable.train_without_dropout()
    measured = _policy_gradients(state, experience, answers)
    if state.models.value is not None:
        measured |= _value_gradients(state, state.models.value, experience, answers)
    policy = state.models.policy
    share = _RATES.get(policy.adapter.method, POLICY_RATE)
    norm, _ = policy.update(share if state.settings.ppo.learning_rate is None else 1.0)
    if state.models.value is not None:
        norm += state.models.value.update(1.0)[0]
    return {**measured, "gradient_norm": norm}


def _policy_gradients(
    state: PPOState, experience: Experience, answers: Sequence[int]
) -> dict[str, float]:
    """Accumulate the gradients of the policy's loss, pass by pass; returns what was measured."""
    options, base = state.settings.ppo, state.models.base
    by_answer = options.advantage == "group"
    measured = dict.fromkeys(("policy_loss", "clip_fraction", "moved"), 0.0)
    rows = [experience.rollouts[index].tokens.logprob_row(POLICY) for index in answers]
    for group in packs([[row] for row in rows], pack_tokens(base.device)):
        output, placed = read_rows(
            base,
            [rows[index] for index in group],
            {POLICY: state.models.policy.contribution()},
            temperature=state.settings.rollout.temperature,
        )
        logprobs = -pad_by_row(output.losses, placed.row, range(len(group)))
        part = experience.of([answers[index] for index in group])
        assert part.advantages is not None
        surrogate = policy_loss(
            logprobs,
            part.logprobs,
            part.advantages,
            part.mask,
            clip=options.clip_range,
            by_answer=by_answer,
        )
        loss = surrogate.loss
        if by_answer:
            # GRPO has the divergence in its loss (Shao et al. 2024, equations 3 and 4).
            penalty = divergence(logprobs, part.reference, options.estimator)
            loss = loss + state.kl.value * masked_mean(penalty, part.mask, by_answer=True)
        share = len(group) / len(answers) if by_answer else _token_share(experience, part, answers)
        (share * loss).backward()  # type: ignore[no-untyped-call]
        measured["policy_loss"] += share * float(surrogate.loss.detach())
        measured["clip_fraction"] += share * float(surrogate.clip_fraction)
        measured["moved"] += share * float(surrogate.approx_kl)
    return measured


def _value_gradients(
    state: PPOState, value: TrainableAdapter, experience: Experience, answers: Sequence[int]
) -> dict[str, float]:
    """Accumulate the gradients of the value model's loss, pass by pass; returns the loss."""
    base, total = state.models.base, 0.0
    rows = [experience.rollouts[index].tokens.value_row(VALUE) for index in answers]
    for group in packs([[row] for row in rows], pack_tokens(base.device)):
        output, placed = read_rows(
            base,
            [rows[index] for index in group],
            {VALUE: value.contribution()},
            trunk=experience.trunk,
        )
        row_of = placed.hidden_state_row
        values = pad_by_row(value.head(output.states), row_of, range(len(group)))
        part = experience.of([answers[index] for index in group])
        assert part.values is not None
        assert part.returns is not None
        clip = state.settings.value.value_clip
        loss = value_loss(values, part.values, part.returns, part.mask, clip=clip)
        share = _token_share(experience, part, answers)
        (share * loss).backward()  # type: ignore[no-untyped-call]
        total += share * float(loss.detach())
    return {"value_loss": total}


def _token_share(experience: Experience, part: Experience, answers: Sequence[int]) -> float:
    """The tokens of a pass as a share of those of its optimizer step."""
    return float(part.mask.sum()) / float(experience.mask[list(answers)].sum())


def held_out_objective(
    state: PPOState, prompts: Sequence[Prompt], *, seed: int
) -> tuple[dict[str, float], Experience]:
    """The policy on held-out prompts, sampled with a fixed seed: mean reward, KL, and PPO's objective,
    the reward less the KL penalty (Ouyang et al. 2022, equation 2).
    """
    models = replace(state.models, value=None)  # an evaluation needs no values
    experience = _experience(models, prompts, state.settings, seed)
    reward, kl = float(experience.raw.mean()), float(experience.divergences.mean())
    record = {
        "eval_reward": reward,
        "eval_kl": kl,
        "eval_objective": reward - state.kl.value * kl,
        "eval_deviation": float(experience.raw.std(correction=0)),
        "eval_distinct_2": distinct_2([item.text for item in experience.rollouts]),
        "eval_length": float(experience.mask.sum(1).float().mean()),
    }
    return record, experience


def _evaluate(state: PPOState, run: RunSession) -> None:
    """Evaluate the policy on the held-out prompts; keep the best state, and a few answers."""
    # All prompts equally often, so that the first few answers are to different ones.
    times = math.ceil(state.settings.watch.judge_answers / len(state.held_out))
    record, experience = held_out_objective(state, state.held_out * times, seed=_EVALUATION_SEED)
    allowed = state.step == 0 or record["eval_kl"] <= state.settings.watch.stop_kl
    best = allowed and record["eval_objective"] > state.best
    state.evaluated_step = state.step
    evaluation = {**record, "step": state.step}
    state.evaluations.setdefault("first", evaluation)
    state.evaluations["last"] = evaluation
    if best:
        state.best = record["eval_objective"]
        state.evaluations["best"] = evaluation
        state.models.policy.keep_best()
    run.recorder.evaluated(state.task, state.step, {**record, "best": best})
    answers = zip(experience.rollouts[:_SAMPLES], experience.raw.tolist(), strict=False)
    run.recorder.sampled(
        [
            {
                "step": state.step,
                "prompt": item.prompt.text,
                "answer": item.text,
                "reward": reward,
                "ended": item.ended,
            }
            for item, reward in answers
        ]
    )


def reason_to_stop(state: PPOState, record: Mapping[str, float]) -> tuple[str, str]:
    """Why training should stop after this step, as a word and in a sentence; empty where it should not."""
    watch = state.settings.watch
    if record["kl"] > watch.stop_kl:
        return "kl", say(
            f"Stopped after step {state.step}: the KL divergence of {record['kl']:.1f} is above "
            f"stop_kl={watch.stop_kl:g}. The best policy before it is kept.",
            f"第 {state.step} 步后停止：KL 散度 {record['kl']:.1f} 超过 "
            f"stop_kl={watch.stop_kl:g}。保留此前最佳的策略。",
        )
    floor = watch.stop_entropy * (state.first_entropy or 0.0)
    if record["entropy"] < floor:
        return "entropy", say(
            f"Stopped after step {state.step}: the answers have become almost identical (entropy "
            f"{record['entropy']:.3f}, at first {state.first_entropy:.3f}). The best policy before it is "
            "kept.",
            f"第 {state.step} 步后停止：回答已趋于雷同（熵 {record['entropy']:.3f}，起初 "
            f"{state.first_entropy:.3f}）。保留此前最佳的策略。",
        )
    return "", ""


def _store(
    setup: PPOSetup, state: PPOState, workspace: Workspace, run: RunSession
) -> StoredAdapter:
    """Store the best policy as the task's next version, with its evaluation and the first one."""
    first, best, last = (state.evaluations[key] for key in ("first", "best", "last"))
    unlearned = ""
    if not state.models.policy.had_gradient:
        unlearned = no_gradient()
    elif not state.varied:
        unlearned = equal_rewards(last["eval_reward"])
    elif best["step"] == 0:
        run.note(nothing_better())
    policy, start = state.models.policy, setup.start
    record = {
        "template": start.template.config(),
        "aligned": "grpo" if setup.settings.ppo.advantage == "group" else "ppo",
        "reference": start.stored.name if start.stored else None,
        "reward": setup.reward,
        "data": str(setup.job.data),
        "data_sha256": setup.data_sha256,
        "metrics": {
            "trainable": policy.adapter.trainable(),
            "eval_loss": None,
            "base_eval_loss": None,
            "reward": best["eval_reward"],
            "reward_before": first["eval_reward"],
            "reward_deviation_before": first["eval_deviation"],
            "kl": best["eval_kl"],
            "distinct_2": best["eval_distinct_2"],
            "distinct_2_before": first["eval_distinct_2"],
            "best_step": int(best["step"]),
            "steps": state.step,
            "stopped": state.stopped or None,
            "last_reward": last["eval_reward"],
            "seconds": run.seconds,
        },
    }
    base = state.models.base
    return store_aligned(run, workspace, base, state.task, policy, record, unlearned)


def _draw(run: RunSession) -> None:
    """Draw the run's curves; a full disk costs no more than the picture."""
    try:
        draw_curves(run.run.path / "curves.png", run.run.metrics())
    except OSError as error:
        reason = error.strerror or str(error)
        run.note(
            say(
                f"The curves of run {run.run.id} can't be drawn: {reason}.",
                f"无法绘制训练 {run.run.id} 的曲线：{reason}。",
            )
        )
