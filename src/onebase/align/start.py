"""The start of an alignment: the task's adapter, or a fresh one."""

from dataclasses import dataclass, replace
from datetime import datetime

from onebase.adapters.adapter import Adapter
from onebase.adapters.base_match import require_trained_on
from onebase.adapters.full import FULL
from onebase.adapters.methods import build_adapter, parts_of
from onebase.adapters.peft_format import load_adapter
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.job import AlignJob, check_job, method_settings
from onebase.align.trained_on import other_precision
from onebase.data.preferences import BARE
from onebase.data.template import Template
from onebase.data.virtual_tokens import without_marks
from onebase.errors import UsageError
from onebase.language import say
from onebase.model.base import Base


@dataclass(frozen=True)
class Start:
    """The start of a training: the adapter, the template of its prompts, and the version from which it was
    loaded (None: a fresh adapter). `notes` are messages for the user.
    """

    adapter: Adapter
    template: Template
    stored: StoredAdapter | None
    notes: tuple[str, ...] = ()

    def at(self, rendered_at: datetime) -> "Start":
        """The same, with prompts rendered at that time."""
        return replace(self, template=self.template.at(rendered_at))

    def fixed_in(self, job: AlignJob) -> AlignJob:
        """`job` with the version that it starts from by number, so that a resumed run uses the same."""
        return job if self.stored is None else replace(job, start=self.stored.name)


def start_from(
    job: AlignJob, base: Base, workspace: Workspace, *, max_tokens: int, bare: bool = False
) -> Start:
    """The start of a job. Raises UsageError if no method is named and the task has no adapter, or one
    trained on another base, or a reward model.
    """
    check_job(job)
    if job.method is None:
        stored = stored_start(job, workspace)
        require_trained_on(stored, base)
        AdapterStore(workspace).verify(stored)
        template = Template.from_config(base.tokenizer, stored.record.get("template") or {})
        adapter = load_adapter(stored.path, base)
        if stored.method == "qlora" and base.precision.name == "nf4":
            adapter.method = stored.method  # its files say lora: PEFT has no qlora
        return Start(adapter, template, stored, tuple(other_precision(stored, base)))
    if FULL in parts_of(job.method):
        raise UsageError(
            say(
                "full changes every weight: policy and reference can't share the base.",
                "full 会改变全部权重：策略与参考模型无法共用基座。",
            ),
            say(
                "Use lora, or another method that trains an adapter.", "请使用 lora 或其他适配器。"
            ),
        )
    # Texts that are not answers to anything are rendered alone.
    kind = BARE if bare and job.template == "auto" else job.template
    template = Template(
        base.tokenizer, kind=kind, instruction=job.instruction, max_tokens=max_tokens
    )
    adapter = build_adapter(
        base,
        job.method,
        method_settings(job.method, job.set),
        init_text=without_marks(job.training_job(job.method, None).init_text()),
        seed=job.seed,
        leading=template.leading,
        placed=template.placed,
    )
    return Start(adapter, template, None)


def stored_start(job: AlignJob, workspace: Workspace) -> StoredAdapter:
    """The stored adapter that a job without a method starts from. Raises UsageError where there is none,
    or where it is a reward model or a whole model.
    """
    store = AdapterStore(workspace)
    if job.start is None and job.task not in store.tasks():
        raise UsageError(
            say(
                f"The task {job.task!r} has no adapter to start from.",
                f"{job.task!r} 还没有可作为起点的适配器。",
            ),
            say(
                "Train the task first, name an adapter with --from, or start a fresh one with --method.",
                "请先训练该任务，用 --from 指明一个适配器，或用 --method 重新开始。",
            ),
        )
    stored = store.get(job.start or job.task)
    if stored.record.get("head") or stored.method == FULL:
        what = say("a reward model", "奖励模型") if stored.record.get("head") else FULL
        raise UsageError(
            say(f"{stored.name} is {what}.", f"{stored.name} 是{what}。"),
            say("Start from an adapter that answers.", "请从一个能生成回答的适配器开始。"),
        )
    return stored
