"""PPO as a run: its prompts, its four models, watching it, stopping it, and what it leaves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from onebase.adapters.experts import unchanged_experts
from onebase.adapters.methods import METHODS, build_adapter, canonical_method
from onebase.adapters.scalar_head import ScalarHead
from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.curves import draw_curves
from onebase.align.divergence import Penalty
from onebase.align.experience import Experience, Models, RolloutOptions
from onebase.align.ppo import (
    PPOOptions,
    Progress,
    ValueOptions,
    held_out_objective,
    load_models,
    models_state,
    ppo_step,
)
from onebase.align.prompts import PromptSet, asked_once, digest_of, load_prompts, require_room
from onebase.align.rewards import LearnedReward, Prompt, Reward, reward_named
from onebase.align.run import AlignRun, AlignWatcher, Plan, carried_out, planned
from onebase.align.task import AlignJob, Beginning, begin_from, config_of, pinned, store_aligned
from onebase.align.trainee import Trainee
from onebase.align.unlearned import equal_rewards, no_gradient, nothing_better
from onebase.align.watch import WatchOptions, judgements_in, trouble, without_dropout
from onebase.data.check import left_out, no_end
from onebase.data.example import BadRow
from onebase.data.fields import unread
from onebase.data.rows import read_rows
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.training.batch_sampler import Order
from onebase.training.job import Job

WATCHED = 4
_DRAWS = 1 << 32  # apart from the seeds of the steps
_SEEDS = 1 << 62  # a generator takes one below it


def train_ppo(
    job: AlignJob,
    reward: str,
    *,
    base: Base,
    workspace: Workspace | None = None,
    watcher: AlignWatcher | None = None,
    restart: bool = False,
    run_id: str | None = None,
) -> StoredAdapter:
    """Let the task's policy learn from rewards for its own answers to the job's prompts, and store
    the best by held-out prompts as the task's next version. The reference is the policy as it
    begins.

    `reward` is `module:function` or a task whose adapter is a reward model. Raises UsageError or
    DataError before the first step, RewardError where a reward function fails (the run can go on),
    Interrupted after Ctrl-C.
    """
    workspace = workspace or Workspace()
    ready = _prepare(job, reward, base, workspace, restart=restart, only=run_id)
    models, progress, options = ready.models, ready.progress, ready.options
    title = f"{job.task} (PPO, {ready.begun.adapter.method})"
    with carried_out(ready.plan, base, workspace, seed=job.seed, watcher=watcher) as run:
        run.restore(ready.load, ready.begun.template)
        progress.judgements = progress.judgements or judgements_in(run.run.metrics())
        run.tell(job.task, ready.bad, ready.notes)
        run.watcher.began(title, progress.step, options.steps)
        while progress.step < options.steps and not progress.stopped:
            here = progress.step % ready.watching.judge_every == 0
            due = here and progress.judged != progress.step  # a resumed run has been judged
            if due:
                _judge(ready, run)
                if progress.step == ready.watching.judge_every and not progress.varied:
                    run.note(equal_rewards(progress.judgements["last"]["eval_reward"]))
            run.between(ready.state, due=due)
            record = ppo_step(
                models,
                next(ready.order),
                ready.rolling,
                options,
                ready.valuing,
                progress,
                seed=((job.seed << 20) + progress.step * 4096) % _SEEDS,
            )
            run.measured(progress.step, **record)
            progress.stopped = trouble(record, progress, ready.watching)
        if progress.stopped:
            run.note(progress.stopped)
        _judge(ready, run)
        run.between(ready.state, due=True)
        models.policy.take_best()
        stored = _store(ready, base, workspace, run)
        _draw(run)
        run.summary = {"adapters": [stored.name], **stored.metrics}
    return stored


@dataclass
class _Ready:
    """Everything that a run of PPO needs, its data read and its models built."""

    job: AlignJob
    begun: Beginning
    reward: str
    models: Models
    progress: Progress
    order: Order[Prompt]
    held: list[Prompt]
    rolling: RolloutOptions
    options: PPOOptions
    valuing: ValueOptions
    watching: WatchOptions
    plan: Plan
    data_sha256: str
    bad: tuple[BadRow, ...]
    notes: tuple[str, ...]

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        return {**models_state(self.models, self.progress), "order": self.order.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        load_models(self.models, self.progress, state)
        self.order.load(state["order"])


def _prepare(
    job: AlignJob,
    reward: str,
    base: Base,
    workspace: Workspace,
    *,
    restart: bool,
    only: str | None,
) -> _Ready:
    begun = begin_from(job, base, workspace, max_tokens=512)
    method = begun.adapter.method
    job.check_settings(method, RolloutOptions, PPOOptions, ValueOptions, WatchOptions)
    rolling = job.options(method, RolloutOptions)
    options = job.options(method, PPOOptions)
    valuing = job.options(method, ValueOptions)
    watching = job.options(method, WatchOptions)
    _check_groups(rolling, options)
    job = pinned(job, begun)
    rewarding = reward_named(reward, base, workspace)
    config = config_of(
        "ppo",
        job,
        base,
        [rolling, options, valuing, watching],
        [read_rows(job.data, encoding=job.encoding).sha256],
        reward=rewarding.name,
    )
    plan = planned(config, workspace, restart=restart, only=only)
    begun = begun.at(moment := plan.moment)
    if isinstance(rewarding, LearnedReward):
        rewarding = rewarding.at(moment)
    found = load_prompts(
        job.data,
        begun.template,
        columns=job.columns,
        encoding=job.encoding,
        skip_bad=job.skip_bad,
    )
    learned, held = found.split(watching.held_out, job.seed)
    sets = [found]
    if job.held_out is not None:
        named = load_prompts(
            job.held_out,
            begun.template,
            columns=job.columns,
            encoding=job.encoding,
            skip_bad=job.skip_bad,
        )
        learned, held = list(found.prompts), list(named.prompts)
        sets.append(named)
    models = _models(job, begun, base, rewarding, options, valuing, watching)
    trained = [models.policy] if models.value is None else [models.policy, models.value]
    before = max(trainee.adapter.before_text for trainee in trained)
    require_room(base, [*learned, *held], before, rolling.max_tokens)
    if isinstance(rewarding, LearnedReward):
        _require_room_to_judge(base, rewarding, [*learned, *held], rolling.max_tokens)
    return _Ready(
        job=job,
        begun=begun,
        reward=rewarding.name,
        models=models,
        progress=Progress(penalty=Penalty(options.kl, options.kl_target)),
        order=Order(learned, rolling.prompts, job.seed),
        held=held,
        rolling=rolling,
        options=options,
        valuing=valuing,
        watching=watching,
        plan=plan.rendered(begun.template, digest_of([*learned, *held])),
        data_sha256=found.sha256,
        bad=tuple(row for item in sets for row in item.bad),
        notes=(
            *(note for item in sets for note in [*left_out(item.bad), *asked_once(item)]),
            *no_end(begun.template),
            *unchanged_experts(base, [method]),
            *begun.notes,
            *_of_reward(rewarding, sets),
            *without_dropout(begun.adapter),
        ),
    )


def _of_reward(reward: Reward, sets: Sequence[PromptSet]) -> list[str]:
    """What to say of a reward model: a function is given the whole row, a model reads its prompt alone."""
    if not isinstance(reward, LearnedReward):
        return []
    learned, *held = sets
    told = [unread(learned.fields), *(unread(item.fields, item.path) for item in held)]
    return [*(note for notes in told for note in notes), *reward.notes]


def _require_room_to_judge(
    base: Base, reward: LearnedReward, prompts: Sequence[Prompt], tokens: int
) -> None:
    """As `require_room`, for a reward model: it reads prompts in its own layout, behind its own virtual
    tokens.
    """
    before = reward.adapter.before_text
    if base.context is None or before + reward.template.max_tokens <= base.context:
        return  # what it reads is cut
    read = [replace(item, ids=tuple(reward.template.prompt(item.asked))) for item in prompts]
    require_room(base, read, before, tokens)


def _store(
    ready: _Ready,
    base: Base,
    workspace: Workspace,
    run: AlignRun,
) -> StoredAdapter:
    """The best policy as the task's next version, with what was measured of it and at the start."""
    first, best, last = (ready.progress.judgements[key] for key in ("first", "best", "last"))
    unlearned = _unlearned(ready)
    if best["step"] == 0 and not unlearned:
        run.note(nothing_better())
    adapter, begun = ready.models.policy.adapter, ready.begun
    return store_aligned(
        base,
        workspace,
        run,
        ready.job.task,
        adapter,
        {
            "template": begun.template.config(),
            "aligned": "grpo" if ready.options.advantage == "group" else "ppo",
            "reference": begun.stored.name if begun.stored else None,
            "reward": ready.reward,
            "data": str(ready.job.data),
            "data_sha256": ready.data_sha256,
            "metrics": {
                "trainable": adapter.trainable(),
                "eval_loss": None,
                "base_eval_loss": None,
                "reward": best["eval_reward"],
                "reward_before": first["eval_reward"],
                "reward_deviation_before": first["eval_deviation"],
                "kl": best["eval_kl"],
                "distinct_2": best["eval_distinct_2"],
                "distinct_2_before": first["eval_distinct_2"],
                "best_step": int(best["step"]),
                "steps": ready.progress.step,
                "stopped": ready.progress.stopped or None,
                "last_reward": last["eval_reward"],
                "seconds": run.seconds,
            },
        },
        unlearned=unlearned,
    )


def _unlearned(ready: _Ready) -> str:
    """Why nothing was learned; empty where something was."""
    if not ready.models.policy.moved:
        return no_gradient()
    if not ready.progress.varied:
        return equal_rewards(ready.progress.judgements["last"]["eval_reward"])
    return ""


def _draw(run: AlignRun) -> None:
    """The run's curves; a disk that has no room for them costs nothing but them."""
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


def _check_groups(rolling: RolloutOptions, options: PPOOptions) -> None:
    if options.advantage == "group" and rolling.samples < 2:
        raise UsageError(
            say(
                f"advantage=group with samples={rolling.samples}: there is no group.",
                f"advantage=group 而 samples={rolling.samples}：没有可比较的一组回答。",
            ),
            say("Set samples=4 or more.", "请设置 samples=4 或更多。"),
        )


def _models(
    job: AlignJob,
    begun: Beginning,
    base: Base,
    reward: Reward,
    options: PPOOptions,
    valuing: ValueOptions,
    watching: WatchOptions,
) -> Models:
    """Policy, its frozen copy, the value model and the reward."""
    method = begun.adapter.method
    training = job.training_job(method, options.learning_rate)
    policy = Trainee(base, begun.adapter, training, clip=watching.clip)
    value = None
    if options.advantage == "gae":
        value = _value_model(base, job, valuing, watching.clip)
    return Models(base, begun.template, policy, policy.fixed(), value, reward)


def _value_model(base: Base, job: AlignJob, valuing: ValueOptions, clip: float) -> Trainee:
    """A fresh adapter with a head at zero."""
    method = canonical_method(valuing.value_method)
    third = f"top:{max(1, base.shape.layers // 3)}"
    layers = {"layers": valuing.value_layers or third}
    chosen = layers if "layers" in METHODS[method].options.model_fields else {}
    adapter = build_adapter(
        base, method, chosen, init_text=job.instruction or "Rate the text.", seed=job.seed
    )
    adapter.head = ScalarHead(base.shape.hidden).to(base.device)
    rates = Job("value", job.data, method, set={"learning_rate": valuing.value_rate})
    return Trainee(base, adapter, rates, clip=clip, head_rate=valuing.head_rate)


def _judge(ready: _Ready, run: AlignRun) -> None:
    """The policy on the held-out prompts; keeps the best, and a few of its answers."""
    progress = ready.progress
    # All prompts equally often, and the first few answers to different ones.
    times = math.ceil(ready.watching.judge_answers / len(ready.held))
    record, found = held_out_objective(
        ready.models, ready.held * times, ready.rolling, progress, seed=_DRAWS
    )
    within = progress.step == 0 or record["eval_kl"] <= ready.watching.stop_kl
    best = within and record["eval_objective"] > progress.best
    progress.judged = progress.step
    judgement = {**record, "step": progress.step}
    progress.judgements.setdefault("first", judgement)
    progress.judgements["last"] = judgement
    if best:
        progress.best = record["eval_objective"]
        progress.judgements["best"] = judgement
        ready.models.policy.keep_best()
    run.measured(progress.step, **record, best=best)
    _keep_samples(found, progress.step, run)


def _keep_samples(found: Experience, step: int, run: AlignRun) -> None:
    """The answers to the first few held-out prompts, in the run's samples.jsonl."""
    run.sampled(
        [
            {
                "step": step,
                "prompt": item.prompt.text,
                "answer": item.text,
                "reward": score,
                "ended": item.ended,
            }
            for item, score in zip(found.rollouts[:WATCHED], found.raw.tolist(), strict=False)
        ]
    )
