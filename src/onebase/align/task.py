"""What is to be learned from preferences: the data as tokens, and the adapter it begins from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from pydantic import BaseModel

from onebase.adapters.adapter import Adapter
from onebase.adapters.experts import unchanged_experts
from onebase.adapters.full import FULL
from onebase.adapters.methods import (
    METHODS,
    build_adapter,
    own_settings,
    parse_options,
    parts_of,
)
from onebase.adapters.peft_format import load_adapter, save_adapter
from onebase.adapters.runs import Run
from onebase.adapters.store import AdapterStore, StoredAdapter, check_task_name
from onebase.adapters.workspace import Workspace
from onebase.align.answers import Answered, answered
from onebase.align.run import identified
from onebase.data.check import left_out, no_end
from onebase.data.example import BadRow
from onebase.data.fields import unread
from onebase.data.places import without_marks
from onebase.data.preferences import (
    BARE,
    Kind,
    PreferenceSet,
    load_preferences,
    require_good_rows,
)
from onebase.data.rendering import rendered_preferences
from onebase.data.rows import read_rows
from onebase.data.template import Template
from onebase.engine.compiled import compiled
from onebase.engine.generic_runner import GenericRunner
from onebase.errors import UsageError, unknown
from onebase.language import say
from onebase.model.base import Base
from onebase.training.job import Job
from onebase.training.outcome import already_stored

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
        _, rest = own_settings(method, self.set)
        own = {key: value for key, value in rest.items() if key in kind.model_fields}
        return parse_options(kind, own)

    def check_settings(self, method: str, *kinds: type[BaseModel]) -> None:
        """Raise UsageError for a setting that is neither the method's nor of one of the `kinds`, or
        a wrong value.
        """
        own, rest = own_settings(method, self.set)
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


def pinned(job: AlignJob, begun: "Beginning") -> AlignJob:
    """`job` with the version named that it begins from, so that a resumed run finds the same."""
    return job if begun.stored is None else replace(job, start=begun.stored.name)


@dataclass(frozen=True)
class Beginning:
    """What learns, as it begins: the adapter, how its prompts are written, and the version it comes
    from (None: fresh).
    """

    adapter: Adapter
    template: Template
    stored: StoredAdapter | None


def begin_from(
    job: AlignJob, base: Base, workspace: Workspace, *, max_tokens: int, bare: bool = False
) -> Beginning:
    """The job's beginning. Raises UsageError for a task without an adapter where no method is named,
    one trained on another base, or one that is a reward model.
    """
    check_task_name(job.task)
    store = AdapterStore(workspace)
    if job.method is None:
        name = job.start or job.task
        if job.start is None and job.task not in store.tasks():
            raise UsageError(
                say(
                    f"There is no adapter of {job.task!r} to begin from.",
                    f"{job.task!r} 还没有可作为起点的适配器。",
                ),
                say(
                    "Train the task first, name one with --from, or begin afresh with --method.",
                    "请先训练该任务，用 --from 指明一个适配器，或用 --method 重新开始。",
                ),
            )
        stored = store.get(name)
        _require_own(stored, base)
        store.verify(stored)
        template = Template.from_config(base.tokenizer, stored.record.get("template") or {})
        return Beginning(load_adapter(stored.path, base), template, stored)
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


def written(job: AlignJob, base: Base, *, max_tokens: int, bare: bool) -> Template:
    """How the job's texts are written; texts that answer nothing stand alone."""
    kind = BARE if bare and job.template == "auto" else job.template
    return Template(base.tokenizer, kind=kind, instruction=job.instruction, max_tokens=max_tokens)


def _own(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are the method's."""
    _, rest = own_settings(method, settings)
    return {key: value for key, value in settings.items() if key not in rest}


def _require_own(stored: StoredAdapter, base: Base) -> None:
    trained_on = stored.record.get("base_fingerprint")
    if stored.record.get("head") or stored.method == "full":
        what = say("a reward model", "奖励模型") if stored.record.get("head") else "full"
        raise UsageError(
            say(f"{stored.name} is {what}.", f"{stored.name} 是{what}。"),
            say("Begin from an adapter that answers.", "请从一个能生成回答的适配器开始。"),
        )
    if trained_on and trained_on != base.fingerprint:
        raise UsageError(
            say(
                f"{stored.name} was trained on {stored.base}, not on {base.name}.",
                f"{stored.name} 是在 {stored.base} 上训练的，而不是 {base.name}。",
            ),
            say(f"Use --base {quote(stored.base)}.", f"请使用 --base {quote(stored.base)}。"),
        )


@dataclass(frozen=True)
class PreferenceRow:
    """A row as tokens: its answers (a pair's chosen one first) and its rating."""

    answers: tuple[Answered, ...]
    rating: float

    @property
    def tokens(self) -> int:
        """How many tokens its texts have."""
        return sum(len(answer.ids) for answer in self.answers)


@dataclass(frozen=True)
class PreferenceData:
    """A job's rows as tokens: what it learns from, what it is judged by, the file they are of, the rows
    that are left out, and what the user should know before the first step.
    """

    train: list[PreferenceRow]
    held_out: list[PreferenceRow]
    source: PreferenceSet
    bad: tuple[BadRow, ...]
    notes: tuple[str, ...]


def load_rows(job: AlignJob, kinds: Sequence[Kind]) -> PreferenceSet:
    """The job's file. Raises DataError or UsageError."""
    source = load_preferences(job.data, kinds=kinds, columns=job.columns, encoding=job.encoding)
    require_good_rows(source, skip_bad=job.skip_bad)
    return source


def preference_data(
    job: AlignJob,
    base: Base,
    source: PreferenceSet,
    begun: Beginning,
    fraction: float,
    *,
    alone: bool = False,
) -> PreferenceData:
    """The job's rows as tokens, `fraction` of its questions held out where it names no file; an
    answer may stand `alone`. Raises DataError for rows that the template refuses, unless they are to
    be skipped, and UsageError for a row that is too long for the base's rotary embedding.
    """
    source, tokens = rendered_preferences(source, begun.template, alone=alone)
    require_good_rows(source, skip_bad=job.skip_bad)
    found = {id(row): item for row, item in zip(source.rows, tokens, strict=True)}
    bad = source.bad
    if job.held_out is not None:
        held = load_preferences(
            job.held_out, kinds=(source.kind,), columns=job.columns, encoding=job.encoding
        )
        held, tokens = rendered_preferences(held, begun.template, alone=alone)
        require_good_rows(held, skip_bad=job.skip_bad)
        found |= {id(row): item for row, item in zip(held.rows, tokens, strict=True)}
        bad += held.bad
        train = source
    else:
        train, held = source.split(fraction, job.seed)

    def rows(data: PreferenceSet) -> list[PreferenceRow]:
        return [
            PreferenceRow(tuple(map(answered, found[id(row)])), row.rating) for row in data.rows
        ]

    notes = (
        *left_out(bad),
        *unread(source.fields),
        *no_end(begun.template),
        *unchanged_experts(base, [begun.adapter.method]),
    )
    data = PreferenceData(rows(train), rows(held), source, bad, notes)
    texts = [answer.ids for row in (*data.train, *data.held_out) for answer in row.answers]
    base.require_room(begun.adapter.before_text + max(map(len, texts), default=0))
    return data


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
        "encoding": job.encoding,
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
    run: Run,
    task: str,
    adapter: Adapter,
    record: Mapping[str, Any],
) -> StoredAdapter:
    """The version of the task that this run made: stored now, unless it already is. `record` stands
    beside what every version's record says.
    """

    def write(folder: Path) -> None:
        save_adapter(adapter, folder, base)
        # Kept beside the weights, so loading is quick.
        compiled(GenericRunner(base), adapter, folder)

    store = AdapterStore(workspace)
    return already_stored(store, run, task) or store.add(
        task,
        write,
        {
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "precision": base.precision.text,
            "method": adapter.method,
            "options": adapter.options,
            "run": run.id,
            **record,
        },
    )
