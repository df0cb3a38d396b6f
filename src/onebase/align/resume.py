"""Resuming an interrupted alignment."""

from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.dpo import train_dpo
from onebase.align.job import AlignJob
from onebase.align.kto import train_kto
from onebase.align.ppo import train_ppo
from onebase.align.reward_model import train_reward
from onebase.model.base import Base
from onebase.runs.observer import Observer
from onebase.runs.resume import path_from, resumable_run

_TRAINERS = {"reward": train_reward, "dpo": train_dpo, "kto": train_kto}


def resume_aligned(
    id: str,
    *,
    base: Base,
    workspace: Workspace | None = None,
    observer: Observer | None = None,
) -> StoredAdapter:
    """Continue the run `id` exactly. Raises UsageError for a run that can't be resumed, for example because
    its data, its base or the adapter that it started from has changed.
    """
    workspace = workspace or Workspace()
    run = resumable_run(workspace, id)
    config = run.config
    request = dict(config["job"])
    reward = request.pop("reward", None)
    for key in ("data", "held_out"):
        if request[key] is not None:
            request[key] = path_from(config, request[key])
    job = AlignJob(**request)
    if config["align"] == "ppo":
        return train_ppo(
            job, str(reward), base=base, workspace=workspace, observer=observer, run_id=run.id
        )
    trainer = _TRAINERS[config["align"]]
    return trainer(job, base=base, workspace=workspace, observer=observer, run_id=run.id)
