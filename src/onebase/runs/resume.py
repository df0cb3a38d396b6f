"""Which run can be resumed, and how."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onebase.adapters.workspace import Workspace
from onebase.errors import CorruptFileError, UsageError
from onebase.language import say
from onebase.runs.run import Run, RunStore, still_running


def resume_command(run: Run, workspace: Workspace) -> str:
    """The command that resumes the run."""
    return f"onebase resume {run.id}{workspace.option}"


def interrupted_run(workspace: Workspace, config: dict[str, Any]) -> Run | None:
    """The newest run with the same config, if it can be resumed."""
    for run in reversed(RunStore(workspace).list()):
        # A search in the text: to parse the YAML of every run would take seconds.
        if config["identity"].encode() in (run.path / "config.yaml").read_bytes():
            return run if run.resumable else None
    return None


def resumable_run(workspace: Workspace, id: str) -> Run:
    """The run `id` (or the only one whose id begins so). Raises UsageError where it can't be resumed."""
    run = RunStore(workspace).get(id)
    if run.resumable:
        return run
    if run.status == "running" or run.held:
        raise still_running(run)
    if run.is_race:
        raise UsageError(
            say(
                f"Run {run.id} is a race, and a race can't be resumed.",
                f"训练 {run.id} 是一次竞赛，无法继续。",
            ),
            say(
                "Start it again with onebase race; its best configuration before Ctrl-C is stored.",
                "请用 onebase race 重新开始；Ctrl-C 时的最佳结果已经保存。",
            ),
        )
    raise UsageError(
        say(
            f"Run {run.id} has ended ({run.status}): there is nothing to resume.",
            f"训练 {run.id} 已结束（{run.status}），没有可继续的内容。",
        ),
        say(
            "Train again for a new version; onebase runs list shows the interrupted runs.",
            "请重新训练以得到新版本；onebase runs list 会列出已中断的训练。",
        ),
    )


def incomplete_config(run: Run, error: Exception) -> CorruptFileError:
    """The error for a config.yaml in which a key is missing."""
    file = run.path / "config.yaml"
    return CorruptFileError(
        say(f"{file} is incomplete: {error} is missing.", f"{file} 不完整：缺少 {error}。"),
        say("Restore it from a copy, or train again.", "请从备份恢复该文件，或重新训练。"),
    )


def path_from(config: Mapping[str, Any], name: str) -> str:
    """A path of a run's config as it is read from here: relative paths are relative to the folder in
    which the run was started.
    """
    folder = Path(config.get("folder", "."))
    if folder == Path.cwd() or not (folder / name).exists():
        return name
    return str(folder / name)
