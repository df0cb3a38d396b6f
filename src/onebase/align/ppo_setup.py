"""The setup of PPO before its first step: prompts, the four models, and the run's config."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from onebase.adapters.adapter import Adapter
from onebase.adapters.experts import unchanged_experts
from onebase.adapters.methods import METHODS, build_adapter, canonical_method
from onebase.adapters.scalar_head import ScalarHead
from onebase.adapters.workspace import Workspace
from onebase.align.experience import Models
from onebase.align.job import AlignJob
from onebase.align.ppo_options import (
    PPOOptions,
    PPOSettings,
    RolloutOptions,
    ValueOptions,
    WatchOptions,
)
from onebase.align.prompts import (
    PromptSet,
    digest_of,
    load_prompts,
    repeated_prompt_notes,
    require_room,
)
from onebase.align.rewards import LearnedReward, Prompt, Reward, reward_named
from onebase.align.run_config import align_config, earlier_run, with_rows
from onebase.align.start import Start, start_from
from onebase.data.check import left_out, no_end
from onebase.data.example import BadRow
from onebase.data.fields import unread
from onebase.data.rows import read_rows
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.render_date import local_time, render_date_of
from onebase.runs.run import Run
from onebase.training.job import Job
from onebase.training.trainable_adapter import TrainableAdapter


@dataclass(frozen=True)
class PPOSetup:
    """Everything that a run needs before its first step; `earlier` is the interrupted run that continues."""

    job: AlignJob
    start: Start
    reward: str
    models: Models
    settings: PPOSettings
    prompts: list[Prompt]
    held_out: list[Prompt]
    config: dict[str, Any]
    earlier: Run | None
    data_sha256: str
    bad: tuple[BadRow, ...]
    notes: tuple[str, ...]


def set_up_ppo(
    job: AlignJob,
    reward_name: str,
    base: Base,
    workspace: Workspace,
    *,
    restart: bool,
    run_id: str | None,
) -> PPOSetup:
    """Read the prompts, and build or load the models. Raises UsageError or DataError."""
    start = start_from(job, base, workspace, max_tokens=512)
    settings = _settings(job, start.adapter.method)
    job = start.fixed_in(job)
    reward = reward_named(reward_name, base, workspace)
    config = align_config(
        "ppo",
        job,
        base,
        [settings.rollout, settings.ppo, settings.value, settings.watch],
        [read_rows(job.data, encoding=job.encoding).sha256],
        reward=reward.name,
    )
    earlier = earlier_run(config, workspace, restart=restart, run_id=run_id)
    rendered_at = local_time() if earlier is None else render_date_of(earlier.config)
    start = start.at(rendered_at)
    if isinstance(reward, LearnedReward):
        reward = reward.at(rendered_at)
    sets, prompts, held_out = _prompts(job, start, settings.watch)
    models = _models(job, start, base, reward, settings)
    _require_room(models, [*prompts, *held_out], settings.rollout.max_tokens)
    return PPOSetup(
        job=job,
        start=start,
        reward=reward.name,
        models=models,
        settings=settings,
        prompts=prompts,
        held_out=held_out,
        config=with_rows(config, earlier, start.template, digest_of([*prompts, *held_out])),
        earlier=earlier,
        data_sha256=sets[0].sha256,
        bad=tuple(row for item in sets for row in item.bad),
        notes=(
            *(
                note
                for item in sets
                for note in [*left_out(item.bad), *repeated_prompt_notes(item)]
            ),
            *no_end(start.template),
            *unchanged_experts(base, [start.adapter.method]),
            *start.notes,
            *_reward_notes(reward, sets),
            *_dropout_notes(start.adapter),
        ),
    )


def _settings(job: AlignJob, method: str) -> PPOSettings:
    """The job's options. Raises UsageError."""
    job.check_settings(method, RolloutOptions, PPOOptions, ValueOptions, WatchOptions)
    settings = PPOSettings(
        job.options(method, RolloutOptions),
        job.options(method, PPOOptions),
        job.options(method, ValueOptions),
        job.options(method, WatchOptions),
    )
    samples = settings.rollout.samples
    if settings.ppo.advantage == "group" and samples < 2:
        raise UsageError(
            say(
                f"advantage=group with samples={samples}: a group needs several answers.",
                f"advantage=group 而 samples={samples}：一组至少需要多个回答。",
            ),
            say("Set samples=4 or more.", "请设置 samples=4 或更多。"),
        )
    return settings


def _prompts(
    job: AlignJob, start: Start, watch: WatchOptions
) -> tuple[list[PromptSet], list[Prompt], list[Prompt]]:
    """The files' prompts, those to train on, and those held out."""

    def load(path: Any) -> PromptSet:
        return load_prompts(
            path,
            start.template,
            columns=job.columns,
            encoding=job.encoding,
            skip_bad=job.skip_bad,
        )

    prompts = load(job.data)
    if job.held_out is None:
        return [prompts], *prompts.split(watch.held_out, job.seed)
    held_out = load(job.held_out)
    return [prompts, held_out], list(prompts.prompts), list(held_out.prompts)


def _models(
    job: AlignJob, start: Start, base: Base, reward: Reward, settings: PPOSettings
) -> Models:
    """Policy, its frozen copy, the value model and the reward."""
    training_job = job.training_job(start.adapter.method, settings.ppo.learning_rate)
    policy = TrainableAdapter(base, start.adapter, training_job, max_norm=settings.watch.clip)
    value = _value_model(base, job, settings) if settings.ppo.advantage == "gae" else None
    return Models(base, start.template, policy, policy.frozen(), value, reward)


def _value_model(base: Base, job: AlignJob, settings: PPOSettings) -> TrainableAdapter:
    """A fresh adapter with a head at zero."""
    options = settings.value
    method = canonical_method(options.value_method)
    top_third = f"top:{max(1, base.shape.layers // 3)}"
    layers = {"layers": options.value_layers or top_third}
    chosen = layers if "layers" in METHODS[method].options.model_fields else {}
    adapter = build_adapter(
        base, method, chosen, init_text=job.instruction or "Rate the text.", seed=job.seed
    )
    adapter.head = ScalarHead(base.shape.hidden).to(base.device)
    rates = Job("value", job.data, method, set={"learning_rate": options.value_rate})
    max_norm = settings.watch.clip
    return TrainableAdapter(base, adapter, rates, max_norm=max_norm, head_rate=options.head_rate)


def _require_room(models: Models, prompts: Sequence[Prompt], tokens: int) -> None:
    """Raise DataError for a prompt that leaves no room for an answer, to the models or the reward."""
    base, value = models.base, models.value
    adapters = [models.policy.adapter, *([] if value is None else [value.adapter])]
    require_room(base, prompts, max(item.before_text for item in adapters), tokens)
    reward = models.reward
    if not isinstance(reward, LearnedReward):
        return
    before = reward.adapter.before_text
    if base.context is None or before + reward.template.max_tokens <= base.context:
        return  # it cuts what it reads
    # It reads prompts in its own layout.
    rendered = [replace(item, ids=tuple(reward.template.prompt(item.turns))) for item in prompts]
    require_room(base, rendered, before, tokens)


def _reward_notes(reward: Reward, sets: Sequence[PromptSet]) -> list[str]:
    """Notes on a reward model, which reads the prompt alone; a function gets the whole row."""
    if not isinstance(reward, LearnedReward):
        return []
    prompts, *held_out = sets
    notes = [unread(prompts.fields), *(unread(item.fields, item.path) for item in held_out)]
    return [*(note for group in notes for note in group), *reward.notes]


def _dropout_notes(adapter: Adapter) -> list[str]:
    """A note where the policy was to be trained with dropout."""
    dropout = 0.0 if adapter.lora is None else adapter.lora.dropout
    if not dropout:
        return []
    return [
        say(
            f"PPO trains without dropout (dropout={dropout:g} is not used): the answers are sampled "
            "without it.",
            f"PPO 训练不使用 dropout（忽略 dropout={dropout:g}）：回答也是在没有 dropout 时采样的。",
        )
    ]
