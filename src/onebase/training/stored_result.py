"""The result of a run: one stored version of each task, however often the run was interrupted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onebase.adapters.adapter import Adapter
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
from onebase.training.job_state import JobState

LEARNED = "learned"  # among the metrics: whether the training changed anything


def store_result(
    workspace: Workspace,
    base: Base,
    run: Run,
    task: str,
    adapter: Adapter,
    record: Mapping[str, Any],
    *,
    learned: bool,
    full_model: Base | None = None,
) -> StoredAdapter:
    """The version of `task` that `run` made: stored now, unless an earlier session has stored it.

    `record` joins what every version records. A version that has not `learned` anything is stored but
    not promoted. Of full fine-tuning, `full_model` is stored and not the adapter. Raises OSError and
    SafetensorError where the disk refuses.
    """

    def write(folder: Path) -> None:
        if full_model is not None:
            save_full(full_model, folder)
            return
        save_adapter(adapter, folder, base)
        with_prompt_kv(GenericRunner(base), adapter, folder)  # stored too: loading is then quick

    store = AdapterStore(workspace)
    return _already_stored(store, run, task) or store.add(
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
            "metrics": {**record["metrics"], LEARNED: learned},
        },
        promote=learned,
    )


def store_job(
    workspace: Workspace,
    base: Base,
    run: Run,
    state: JobState,
    base_loss: float | None,
    **metrics: Any,
) -> StoredAdapter:
    """Store the result of a supervised job; `metrics` join those of every training."""
    adapter = state.adapter
    evaluated = bool(state.data.held_out) and state.best_step > 0
    return store_result(
        workspace,
        base,
        run,
        state.task,
        adapter,
        {
            "template": state.template.config(),
            "data": str(state.job.data),
            "data_sha256": state.data.dataset.sha256,
            "labels": list(state.data.dataset.labels),
            "metrics": {
                "trainable": adapter.trainable(),
                "eval_loss": state.best_loss if evaluated else None,
                "base_eval_loss": base_loss,
                "best_step": state.best_step,
                "steps": state.step,
                "diverged": state.diverged,
                "truncated": state.data.truncated,
                "seconds": state.seconds,
                "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
                **metrics,
            },
        },
        learned=state.trainable.had_gradient,
        full_model=state.base if adapter.full is not None else None,
    )


def _already_stored(store: AdapterStore, run: Run, task: str) -> StoredAdapter | None:
    """The version that an earlier session of the run stored; promoted if that session ended before
    it was.
    """
    versions = store.list(task)
    of_run = [item for item in versions if item.record.get("run") == run.id]
    if not of_run:
        return None
    newest = of_run[-1]
    try:
        store.verify(newest)
    except CorruptFileError:  # the machine went down before its files were on the disk
        return None
    learned = newest.metrics.get(LEARNED, True)
    if newest is versions[-1] and not newest.current and learned:
        return store.promote(newest.name)
    return newest


def summary(adapter: StoredAdapter) -> dict[str, Any]:
    """A stored adapter as `onebase train --json` shows it."""
    return {
        "task": adapter.task,
        "version": adapter.version,
        "method": adapter.record["method"],
        "path": str(adapter.path),
        **adapter.record["metrics"],
    }


def name_to_use(stored: StoredAdapter) -> str:
    """The name by which commands reach a stored version: the task's, where it is the current one."""
    return stored.task if stored.metrics.get(LEARNED, True) else stored.name


def not_promoted_note(stored: StoredAdapter, workspace: Workspace) -> str:
    """The note on a version that is stored but was not made current."""
    command = f"onebase adapters promote {stored.name}{workspace.option}"
    return say(
        f"{stored.name} is stored but was not made current; `{command}` would do so.",
        f"{stored.name} 已保存，但未设为当前版本；如需启用：`{command}`。",
    )
