"""What a run leaves behind: one stored version of each task, however often it was interrupted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onebase.adapters.full import save_full
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.store import AdapterStore, StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.engine.generic_runner import GenericRunner
from onebase.engine.prompt_kv import with_prompt_kv
from onebase.errors import CorruptFileError
from onebase.language import say
from onebase.model.base import Base
from onebase.runs.run import Run
from onebase.training.job_state import Learner

LEARNED = "learned"  # among the metrics: whether the training changed anything


def store_once(
    store: AdapterStore,
    base: Base,
    run: Run,
    learner: Learner,
    base_loss: float | None,
    **metrics: Any,
) -> StoredAdapter:
    """The version of the learner's task that `run` made: stored now, unless it already is.

    `metrics` stand in its record beside those of every training.
    """
    return already_stored(store, run, learner.job.task) or _store(
        store, base, run, learner, base_loss, metrics
    )


def already_stored(store: AdapterStore, run: Run, task: str) -> StoredAdapter | None:
    """What an earlier session of the run has stored, made current if it came no further."""
    versions = store.list(task)
    own = [item for item in versions if item.record.get("run") == run.id]
    if not own:
        return None
    try:
        store.verify(own[-1])
    except CorruptFileError:  # the machine went down before its files were on the disk
        return None
    learned = own[-1].metrics.get(LEARNED, True)
    if own[-1] is versions[-1] and not own[-1].current and learned:
        return store.promote(own[-1].name)
    return own[-1]


def asked_as(stored: StoredAdapter) -> str:
    """The name that a command reaches a stored version by: the task's, where it is the current one."""
    return stored.task if stored.metrics.get(LEARNED, True) else stored.name


def not_promoted(stored: StoredAdapter, workspace: Workspace) -> str:
    """What to say of a version that is stored and did not become the current one."""
    command = f"onebase adapters promote {stored.name}{workspace.option}"
    return say(
        f"{stored.name} is stored and not made current; `{command}` would.",
        f"{stored.name} 已保存，但未设为当前版本；如需启用：`{command}`。",
    )


def _store(
    store: AdapterStore,
    base: Base,
    run: Run,
    learner: Learner,
    base_loss: float | None,
    metrics: Mapping[str, Any],
) -> StoredAdapter:
    job = learner.job
    judged = bool(learner.data.held_out)

    def write(folder: Path) -> None:
        if learner.adapter.full is not None:
            save_full(learner.base, folder)
            return
        save_adapter(learner.adapter, folder, base)
        # Kept beside the weights, so loading is quick.
        with_prompt_kv(GenericRunner(base), learner.adapter, folder)

    return store.add(
        job.task,
        write,
        {
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "precision": base.precision.text,
            "method": learner.adapter.method,
            "options": learner.adapter.options,
            "template": learner.template.config(),
            "data": str(job.data),
            "data_sha256": learner.data.dataset.sha256,
            "labels": list(learner.data.dataset.labels),
            "run": run.id,
            "metrics": {
                "trainable": learner.adapter.trainable(),
                "eval_loss": learner.best_loss if judged and learner.best_step else None,
                "base_eval_loss": base_loss,
                "best_step": learner.best_step,
                "steps": learner.step,
                "diverged": learner.diverged,
                LEARNED: learner.moved,
                "truncated": learner.data.truncated,
                "seconds": learner.seconds,
                "tokens_per_second": learner.tokens / max(learner.seconds, 1e-9),
                **metrics,
            },
        },
        promote=learner.moved,
    )
