"""Going on with an interrupted run of this package."""

from pathlib import Path

from onebase.adapters.store import StoredAdapter
from onebase.adapters.workspace import Workspace
from onebase.align.dpo import train_dpo
from onebase.align.kto import train_kto
from onebase.align.ppo_training import train_ppo
from onebase.align.reward_model import train_reward
from onebase.align.run import AlignWatcher
from onebase.align.task import AlignJob
from onebase.model.base import Base
from onebase.training.resume import resumable_run

_TRAINERS = {"reward": train_reward, "dpo": train_dpo, "kto": train_kto}


def resume_aligned(
    id: str,
    *,
    base: Base,
    workspace: Workspace | None = None,
    watcher: AlignWatcher | None = None,
) -> StoredAdapter:
    """Go on with the run `id` exactly. Raises UsageError for a run that can't go on, among others
    because its data, its base or what it began from is no longer the same.
    """
    workspace = workspace or Workspace()
    run = resumable_run(workspace, id)
    config = run.config
    asked = dict(config["job"])
    reward = asked.pop("reward", None)
    folder = Path(config["folder"])
    for key in ("data", "held_out"):
        if asked[key] is not None and folder != Path.cwd() and (folder / asked[key]).exists():
            asked[key] = str(folder / asked[key])
    job = AlignJob(**asked)
    if config["align"] == "ppo":
        return train_ppo(
            job, str(reward), base=base, workspace=workspace, watcher=watcher, run_id=run.id
        )
    trainer = _TRAINERS[config["align"]]
    return trainer(job, base=base, workspace=workspace, watcher=watcher, run_id=run.id)
