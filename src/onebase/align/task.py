"""What is to be aligned: the job, the adapter it begins from, and what it leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from onebase.adapters.adapter import Adapter
from onebase.adapters.full import FULL
from onebase.adapters.methods import (
    METHODS,
    build_adapter,
    parse_options,
    parts_of,
    settings_by_method,
)
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.adapters.store import AdapterStore, StoredAdapter, check_task_name
from onebase.adapters.workspace import Workspace
from onebase.align.recorded import other_precision, require_base
from onebase.align.run import AlignRun, identified
from onebase.data.encoding import codec_of
from onebase.data.preferences import BARE
from onebase.data.rows import read_rows
from onebase.data.template import Template
from onebase.data.virtual_tokens import without_marks
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.model.base import Base
from onebase.training.job import Job, check_seed
from onebase.training.stored_result import LEARNED, already_stored, not_promoted

Chosen = TypeVar("Chosen", bound=BaseModel)


@dataclass(frozen=True)
class AlignJob:
    """One task to align. `data` and `held_out` are files of preferences (for PPO, of prompts).

    `method` None begins from the task's current adapter, or from `start` (`task@2`); else a fresh
    adapter of that method learns. `encoding` is that of files that are not UTF-8. `set` holds the method's options and the algorithm's.
    """

    task: str
    data: str | Path
    method: str | None = None
    start: str | None = None
    instruction: str | None = None
    held_out: str | Path | None = None
    template: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    skip_bad: bool = False
    seed: int = 0
    set: Mapping[str, Any] = field(default_factory=dict)

    def options(self, method: str, kind: type[Chosen]) -> Chosen:
        """The job's settings of one `kind`; the others' and the method's are passed over."""
        _, rest = settings_by_method(method, self.set)
        own = {key: value for key, value in rest.items() if key in kind.model_fields}
        return parse_options(kind, own)

    def check_settings(self, method: str, *kinds: type[BaseModel]) -> None:
        """Raise UsageError for a setting that is neither the method's nor of one of the `kinds`, or
        a wrong value.
        """
        own, rest = settings_by_method(method, self.set)
        known = [name for kind in kinds for name in kind.model_fields]
        for key in rest:
            if key not in known:
                fields = [name for part in own for name in METHODS[part].options.model_fields]
                raise unknown("setting", "设置项", key, [*known, *fields])
        for name, settings in own.items():
            parse_options(METHODS[name].options, settings)
        for kind in kinds:
            self.options(method, kind)

    def training_job(self, method: str, learning_rate: float | None) -> Job:
        """A job whose learning rates are the method's own, or this one."""
        settings = _own(method, self.set)
        if learning_rate is not None:
            settings["learning_rate"] = learning_rate
        return Job(self.task, self.data, method, self.instruction, seed=self.seed, set=settings)


def check_job(job: AlignJob) -> None:
    """Refuse, before anything is loaded, what no base could change. Raises UsageError."""
    check_task_name(job.task)
    check_seed(job.seed)
    if job.encoding is not None:
        codec_of(job.encoding)


def pinned(job: AlignJob, begun: "Beginning") -> AlignJob:
    """`job` with the version named that it begins from, so that a resumed run finds the same."""
    return job if begun.stored is None else replace(job, start=begun.stored.name)


@dataclass(frozen=True)
class Beginning:
    """What learns, as it begins: the adapter, how its prompts are written, and the version it comes
    from (None: fresh); `notes` are what a user should know of it.
    """

    adapter: Adapter
    template: Template
    stored: StoredAdapter | None
    notes: tuple[str, ...] = ()

    def at(self, moment: datetime) -> "Beginning":
        """The same, its prompts with the date of `moment`."""
        return replace(self, template=self.template.at(moment))


def begin_from(
    job: AlignJob, base: Base, workspace: Workspace, *, max_tokens: int, bare: bool = False
) -> Beginning:
    """The job's beginning. Raises UsageError for a task without an adapter where no method is named,
    one trained on another base, or one that is a reward model.
    """
    check_job(job)
    if job.method is None:
        stored = beginning_of(job, workspace)
        require_base(stored, base)
        AdapterStore(workspace).verify(stored)
        template = Template.from_config(base.tokenizer, stored.record.get("template") or {})
        adapter = load_adapter(stored.path, base)
        if stored.method == "qlora" and base.precision.name == "nf4":
            adapter.method = stored.method  # its files say lora, as PEFT knows no other
        return Beginning(adapter, template, stored, tuple(other_precision(stored, base)))
    if FULL in parts_of(job.method):
        raise UsageError(
            say(
                "full changes every weight: policy and reference could not share the base.",
                "full 会改变全部权重：策略与参考模型无法共用基座。",
            ),
            say("Use lora, or another adapter.", "请使用 lora 或其他适配器。"),
        )
    template = written(job, base, max_tokens=max_tokens, bare=bare)
    own = _own(job.method, job.set)
    adapter = build_adapter(
        base,
        job.method,
        own,
        init_text=without_marks(job.training_job(job.method, None).init_text()),
        seed=job.seed,
        leading=template.leading,
        placed=template.placed,
    )
    return Beginning(adapter, template, None)


def beginning_of(job: AlignJob, workspace: Workspace) -> StoredAdapter:
    """The stored adapter that a job without a method begins from. Raises UsageError where there is
    none, or it is one that does not answer by an adapter.
    """
    store = AdapterStore(workspace)
    if job.start is None and job.task not in store.tasks():
        raise UsageError(
            say(
                f"The task {job.task!r} has no adapter to start from.",
                f"{job.task!r} 还没有可作为起点的适配器。",
            ),
            say(
                "Train the task first, name one with --from, or begin afresh with --method.",
                "请先训练该任务，用 --from 指明一个适配器，或用 --method 重新开始。",
            ),
        )
    stored = store.get(job.start or job.task)
    if stored.record.get("head") or stored.method == FULL:
        what = say("a reward model", "奖励模型") if stored.record.get("head") else FULL
        raise UsageError(
            say(f"{stored.name} is {what}.", f"{stored.name} 是{what}。"),
            say("Begin from an adapter that answers.", "请从一个能生成回答的适配器开始。"),
        )
    return stored


def written(job: AlignJob, base: Base, *, max_tokens: int, bare: bool) -> Template:
    """How the job's texts are written; texts that answer nothing stand alone."""
    kind = BARE if bare and job.template == "auto" else job.template
    return Template(base.tokenizer, kind=kind, instruction=job.instruction, max_tokens=max_tokens)


def _own(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are the method's."""
    _, rest = settings_by_method(method, settings)
    return {key: value for key, value in settings.items() if key not in rest}


def config_of(
    kind: str,
    job: AlignJob,
    base: Base,
    options: Sequence[BaseModel],
    hashes: Sequence[str],
    **more: Any,
) -> dict[str, Any]:
    """The config of a run: what was asked for in full, and the hash of what must stay the same."""
    asked = {
        "task": job.task,
        "data": str(job.data),
        "method": job.method,
        "start": job.start,
        "instruction": job.instruction,
        "held_out": None if job.held_out is None else str(job.held_out),
        "template": job.template,
        "columns": dict(job.columns),
        # Not where it was not given: earlier versions did not know it.
        **({"encoding": job.encoding} if job.encoding else {}),
        "skip_bad": job.skip_bad,
        "seed": job.seed,
        "set": dict(job.set),
        **more,
    }
    settings = {key: value for item in options for key, value in item.model_dump().items()}
    elsewhere = ("data", "held_out")  # where files are does not matter, what they hold does
    same = {
        "kind": kind,
        "asked": {key: value for key, value in asked.items() if key not in elsewhere},
        "options": settings,
        "hashes": [
            *hashes,
            None if job.held_out is None else read_rows(job.held_out, encoding=job.encoding).sha256,
        ],
        "base": base.fingerprint,
        "precision": base.precision.text,
    }
    return identified(
        {
            "align": kind,
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "precision": base.precision.text,
            "folder": str(Path.cwd()),
            "job": asked,
            "options": settings,
        },
        same,
    )


def store_aligned(
    base: Base,
    workspace: Workspace,
    run: AlignRun,
    task: str,
    adapter: Adapter,
    record: Mapping[str, Any],
    *,
    unlearned: str = "",
) -> StoredAdapter:
    """The version of the task that this run made: stored now, unless it already is. `record` stands
    beside what every version's record says. `unlearned` is why nothing was learned: it is told, and
    the task's current version stays.
    """

    def write(folder: Path) -> None:
        save_adapter(adapter, folder, base)
        # Kept beside the weights, so loading is quick.
        with_prompt_kv(GenericRunner(base), adapter, folder)

    store = AdapterStore(workspace)
    stored = already_stored(store, run.run, task) or store.add(
        task,
        write,
        {
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "precision": base.precision.text,
            "method": adapter.method,
            "options": adapter.options,
            "run": run.run.id,
            **record,
            "metrics": {**record["metrics"], LEARNED: not unlearned},
        },
        promote=not unlearned,
    )
    if unlearned:
        run.note(f"{unlearned} {not_promoted(stored, workspace)}")
    return stored
