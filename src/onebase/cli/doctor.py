"""`onebase doctor`: the resources of this machine, and problems."""

import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import Any

from onebase.cli.options import SessionFlags
from onebase.cli.session import Session, begin
from onebase.errors import FolderError, OnebaseError
from onebase.language import say
from onebase.model.cache import cached_models, models_folder, require_writable_cache
from onebase.model.fetch import DEFAULT_BASE
from onebase.quantity import listed, plural, size


def doctor_command(*, flags: SessionFlags) -> None:
    """Show this machine's device, memory, disk, libraries and base models, and report problems."""
    session = begin(flags)
    result = _examined(session)
    session.show(result, *_lines(result, session.workspace.option))


def _examined(session: Session) -> dict[str, Any]:
    # Late: torch takes seconds to import.
    import psutil
    import torch

    memory = psutil.virtual_memory()
    folder, models = _cache()
    stored_in = (folder or session.workspace.root).absolute()
    disk = shutil.disk_usage(
        next(path for path in [stored_in, *stored_in.parents] if path.exists())
    )
    return {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        "disk_free_bytes": disk.free,
        "libraries": {
            name: importlib.metadata.version(name)
            for name in ("torch", "transformers", "peft", "safetensors")
        },
        "models": models,
        "cache": None if folder is None else str(folder),
        "workspace": str(session.workspace.root),
        "tasks": session.store.tasks(),
        "missing": [] if DEFAULT_BASE in models else [DEFAULT_BASE],
        "problems": [
            {"message": problem.message, "remedy": problem.remedy} for problem in _problems(session)
        ],
    }


def _cache() -> tuple[Path | None, list[str]]:
    """The folder of the base models, and their names; the folder is None for a user without a home."""
    try:
        return models_folder(), [path.name for path in cached_models()]
    except FolderError:  # one of the problems
        return None, []


def _problems(session: Session) -> list[OnebaseError]:
    """The causes that would make other commands fail: read-only folders and unreadable adapters."""
    problems: list[OnebaseError] = []
    for require in (require_writable_cache, session.workspace.require_writable):
        try:
            require()
        except FolderError as error:
            problems.append(error)
    return [*problems, *session.store.unlisted().values()]


def _lines(result: dict[str, Any], workspace_option: str) -> list[str]:
    """The result as text, with the next commands."""
    lines = [*_machine(result), *_contents(result)]
    for item in result["problems"]:
        lines.append(
            say(
                f"Problem: {item['message']} {item['remedy']}",
                f"问题：{item['message']}{item['remedy']}",
            )
        )
    for name in result["missing"]:
        lines.append(
            say(
                f"Missing: the default base {name}. Fetch it with: onebase model pull {name}",
                f"缺少默认基座 {name}。获取方法：onebase model pull {name}",
            )
        )
    if not result["problems"] and not result["missing"]:
        lines.append(
            say(
                f"Nothing is missing. Next: onebase demo{workspace_option}, or onebase data check FILE.",
                f"一切就绪。下一步：onebase demo{workspace_option}，或 onebase data check 文件。",
            )
        )
    return lines


def _machine(result: dict[str, Any]) -> list[str]:
    cores, threads = result["cores"], result["threads"]
    memory, free = size(result["memory_bytes"]), size(result["memory_free_bytes"])
    disk = size(result["disk_free_bytes"])
    libraries = listed([f"{name} {version}" for name, version in result["libraries"].items()])
    device = (
        say(
            "torch finds no GPU: everything runs on the CPU.",
            "torch 未检测到可用的 GPU：所有计算都在 CPU 上进行。",
        )
        if result["device"] == "cpu"
        else say(f"GPU: {result['device']}.", f"GPU：{result['device']}。")
    )
    return [
        device,
        say(
            f"CPU: {plural(cores, 'core', 'cores')}; torch uses {plural(threads, 'thread', 'threads')}.",
            f"CPU：{cores} 核；torch 使用 {threads} 个线程。",
        ),
        say(f"Memory: {memory}, {free} free.", f"内存：{memory}，可用 {free}。"),
        say(f"Disk: {disk} free for base models.", f"磁盘：可用于基座模型的空间 {disk}。"),
        say(
            f"Software: Python {result['python']}, {libraries}.",
            f"软件：Python {result['python']}、{libraries}。",
        ),
    ]


def _contents(result: dict[str, Any]) -> list[str]:
    models = listed(result["models"]) or say("none yet", "暂无")
    tasks = listed(result["tasks"]) or say("none yet", "暂无")
    cache = (
        say(f" (in {result['cache']})", f"（位于 {result['cache']}）") if result["cache"] else ""
    )
    workspace = result["workspace"]
    return [
        say(f"Base models{cache}: {models}.", f"基座模型{cache}：{models}。"),
        say(
            f"Tasks (in the workspace {workspace}): {tasks}.",
            f"任务（位于工作区 {workspace}）：{tasks}。",
        ),
    ]
