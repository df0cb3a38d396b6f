"""A run of this package on disk: its config, measurements and checkpoints, stopped and resumed."""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from onebase.adapters.workspace import Workspace
from onebase.data.example import BadRow
from onebase.data.template import Template
from onebase.errors import OnebaseError, UsageError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.checkpoint import Checkpoints
from onebase.runs.interruption import Interrupted, Interruption
from onebase.runs.recorder import list_skipped
from onebase.runs.render_date import date_kept, moment_of, present, recorded
from onebase.runs.run import Ending, Run
from onebase.training.execution import resume_command
from onebase.training.resume import interrupted_run

SAVE_SECONDS = 60.0
SAVE_LIMIT = 2
_ROWS = "rows_sha256"  # of a run's config
_log = logging.getLogger("onebase")


class AlignWatcher(Protocol):
    """Who is told what happens, such as the progress display."""

    def began(self, title: str, step: int, total: int) -> None:
        """Before the first step of a session, which goes on from `step`."""

    def measured(self, step: int, record: Mapping[str, Any]) -> None:
        """After each step or evaluation."""

    def noted(self, text: str) -> None:
        """A sentence or two that the user should know."""


class Silent:
    """A watcher for programs: what the user should know goes to the log."""

    def began(self, title: str, step: int, total: int) -> None:
        """Nothing."""

    def measured(self, step: int, record: Mapping[str, Any]) -> None:
        """Nothing."""

    def noted(self, text: str) -> None:
        """To the log."""
        _log.warning(text)


class AlignRun:
    """The run while a process is at work on it; made by `carried_out`.

    What learns is given as `state`, which returns tensors and plain values, and `load`, which goes on
    from them.
    """

    def __init__(
        self,
        run: Run,
        config: Mapping[str, Any],
        watcher: AlignWatcher,
        interruption: Interruption,
        *,
        resumed: bool,
    ) -> None:
        self.run = run
        self.watcher = watcher
        self.summary: dict[str, Any] = {}
        self._config = dict(config)
        self._resumed = resumed
        self._interruption = interruption
        self._checkpoints = Checkpoints(run.checkpoints, SAVE_LIMIT)
        self._began = time.monotonic()
        self._earlier = 0.0
        self._saved_at = -float("inf")
        self._refused = False

    @property
    def seconds(self) -> float:
        """How long the run has been at work, all its sessions together."""
        return self._earlier + time.monotonic() - self._began

    def restore(self, load: Callable[[dict[str, Any]], None], template: Template) -> None:
        """Go on from the newest good checkpoint, where the run was interrupted, and say so. `template`
        wrote its rows.
        """
        if not self._resumed:
            return
        found = self._checkpoints.newest()
        state = found.state or {}
        self.run.cut(state.get("metrics_bytes", 0))
        _cut(self.samples, state.get("samples_bytes", 0 if found.state is None else math.inf))
        if found.state is not None:
            load(state["state"])
            self._earlier = state["seconds"]
        for name, reason in found.damaged.items():
            self.note(
                say(
                    f"Checkpoint {name} of run {self.run.id} is damaged ({reason}) and left out.",
                    f"训练 {self.run.id} 的检查点 {name} 已损坏（{reason}），不予使用。",
                )
            )
            self._checkpoints.drop(name)
        where = (
            say(f"from checkpoint {found.name}", f"从检查点 {found.name} ")
            if found.name
            else say("from the beginning", "从头")
        )
        self.note(say(f"Run {self.run.id} goes on {where}.", f"训练 {self.run.id} {where}继续。"))
        for text in date_kept(self.run, template):
            self.note(text)

    def log(self, **fields: Any) -> None:
        """One line of metrics.jsonl."""
        with suppress(OSError):  # a full disk: the checkpoint's refusal is told
            self.run.log(**fields)

    def measured(self, step: int, **fields: Any) -> None:
        """A step's or an evaluation's measurements, logged and shown."""
        self.log(step=step, **fields)
        self.watcher.measured(step, fields)

    @property
    def samples(self) -> Path:
        """Where answers are kept for the user to look at, one a line."""
        return self.run.path / "samples.jsonl"

    def sampled(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Answers for samples.jsonl: all of them, or none where the disk is full."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        before = _size(self.samples)
        try:
            with self.samples.open("ab") as stream:
                stream.write(text.encode())
        except OSError:  # the checkpoint's refusal is told
            with suppress(OSError):
                _cut(self.samples, before)

    def note(self, text: str, **fields: Any) -> None:
        """Something that the user should know."""
        self.log(note=text, **fields)
        self.watcher.noted(text)

    def tell(self, task: str, bad: Sequence[BadRow], notes: Sequence[str]) -> None:
        """What the user should know before the first step; the rows that are left out are listed in the
        run's folder.
        """
        with suppress(OSError):  # a full disk, as in `log`
            list_skipped(self.run, task, bad)
        for text in notes:
            self.note(text)

    def between(self, state: Callable[[], dict[str, Any]], *, due: bool = False) -> None:
        """Between two steps: save where it is time or `due`. Raises KeyboardInterrupt, saved,
        where the user asked to stop.
        """
        asked = self._interruption.asked
        if asked or due or time.monotonic() - self._saved_at >= SAVE_SECONDS:
            self._save(state)
        if asked:
            raise KeyboardInterrupt

    def _save(self, state: Callable[[], dict[str, Any]]) -> None:
        try:
            whole = {
                "config": self._config,
                "seconds": self.seconds,
                "metrics_bytes": self.run.mark(),
                "samples_bytes": _size(self.samples),
                "state": state(),
            }
            self._checkpoints.save(whole)
            self._refused = False
        except OSError as error:
            if not self._refused:
                self._refused = True
                reason = error.strerror or str(error)
                self.note(
                    say(
                        f"A checkpoint of run {self.run.id} can't be saved: {reason}. The last good "
                        "one stays and training goes on: make room on the disk.",
                        f"无法保存训练 {self.run.id} 的检查点：{reason}。上一个完好的检查点不受影响，"
                        "训练继续进行：请清理磁盘空间。",
                    )
                )
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """The run has come to its end: one checkpoint is enough."""
        self._checkpoints.thin(1)


def _size(file: Path) -> int:
    """How many bytes there are; 0 without a file."""
    return file.stat().st_size if file.exists() else 0


def _cut(file: Path, size: float) -> None:
    """Forget what was written behind the first `size` bytes."""
    if _size(file) > size:
        os.truncate(file, int(size))


@dataclass(frozen=True)
class Plan:
    """What a run is asked for, and the interrupted run of the same that it goes on with (None: a new
    one).
    """

    config: dict[str, Any]
    earlier: Run | None

    @property
    def moment(self) -> datetime:
        """When its rows are rendered: as they were, where it goes on."""
        return present() if self.earlier is None else moment_of(self.earlier.config)

    def rendered(self, template: Template, rows_sha256: str) -> "Plan":
        """With the hash of its rows as tokens, as `template` wrote them. Raises UsageError where those
        are not the rows that it would go on with.
        """
        moment = template.moment or self.moment
        config = {**self.config, **recorded(moment), _ROWS: rows_sha256}
        before = None if self.earlier is None else self.earlier.config.get(_ROWS)
        if self.earlier is not None and before not in (None, rows_sha256):
            raise UsageError(
                say(
                    f"Run {self.earlier.id} can't go on: its rows become other tokens than before "
                    "(another tokenizer, chat template, or version of onebase).",
                    f"训练 {self.earlier.id} 无法继续：数据转换出的词元与之前不同（分词器、对话模板或 "
                    "onebase 的版本已改变）。",
                ),
                say(
                    "Put it back as it was, or give its command again with --restart.",
                    "请恢复原状，或在原来的命令后加 --restart 重新开始。",
                ),
            )
        return replace(self, config=config)


def planned(
    config: dict[str, Any], workspace: Workspace, *, restart: bool, only: str | None = None
) -> Plan:
    """A new run of `config`, or the newest one asked for the same where that was interrupted. `only` is
    the id of the one run that it may be.

    Raises UsageError where that run was asked for something else.
    """
    earlier = None if restart else interrupted_run(workspace, config)
    if only is not None and (earlier is None or earlier.id != only):
        raise UsageError(
            say(
                f"Run {only} can't go on: its data, its settings, its base or what it began from has "
                "changed, or it was begun again since.",
                f"训练 {only} 无法继续：其数据、设置、基座或起点已改变，或之后已重新开始过。",
            ),
            say(
                "Put it back as it was, or begin anew with its command.",
                "请恢复原状，或用原来的命令重新开始。",
            ),
        )
    return Plan(config, earlier)


@contextmanager
def carried_out(
    plan: Plan, base: Base, workspace: Workspace, *, seed: int, watcher: AlignWatcher | None
) -> Iterator[AlignRun]:
    """The run that `plan` asks for. While entered, this process holds it; torch's random state is its
    own.

    Raises Interrupted after Ctrl-C, the run saved and to be resumed; whatever else ends it early leaves
    it as its last checkpoint holds it.
    """
    config, earlier = plan.config, plan.earlier
    run = earlier or Run.create(workspace, config)
    interruption = Interruption()
    going = AlignRun(run, config, watcher or Silent(), interruption, resumed=earlier is not None)
    on_gpu = [base.device] if base.device.type == "cuda" else []
    with run.hold(), torch.random.fork_rng(devices=on_gpu):
        torch.manual_seed(seed)
        run.reopen()
        ending: Ending = "failed"
        outcome: dict[str, Any] = {"resumable": True}
        try:
            with interruption:
                yield going
            ending, outcome = "finished", {}
            going.finish()
        except KeyboardInterrupt as stop:
            ending, outcome = "interrupted", {}
            command = resume_command(run, workspace)
            raise Interrupted(
                say(f"Run {run.id} was interrupted.", f"训练 {run.id} 已中断。"),
                say(f"Go on with: {command}", f"继续训练：{command}"),
            ) from stop
        finally:
            with suppress(OSError):
                run.finish(ending, {"seconds": going.seconds, **going.summary, **outcome})


def identified(config: Mapping[str, Any], same: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the hash of what must be the `same` for a run to go on."""
    text = json.dumps(same, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    plain: dict[str, Any] = yaml.safe_load(
        yaml.safe_dump({"identity": digest, **config}, allow_unicode=True, sort_keys=False)
    )
    return plain


class NotFinite(OnebaseError, ArithmeticError):
    """A loss that is no longer finite."""

    code = "not_finite"


def require_finite(norm: float) -> None:
    """Raise NotFinite unless the norm of a step's gradients is finite."""
    if math.isfinite(norm):
        return
    raise NotFinite(
        say(
            "The gradients are no longer finite: nothing is stored.",
            "梯度已不是有限值：不保存结果。",
        ),
        say("Lower the learning_rate and start again.", "请减小 learning_rate 后重新开始。"),
    )
