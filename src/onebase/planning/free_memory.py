"""How much memory and disk is free now, and how much memory this process takes."""

import shutil
import sys
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def free_memory(device: str) -> int:
    """Bytes that a process can still take on `device` (cpu or cuda)."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free
    free = psutil.virtual_memory().available
    limit = _left_to_the_group() if sys.platform.startswith("linux") else None
    return free if limit is None else min(free, limit)


def free_disk(path: Path) -> int:
    """Bytes free on the disk where `path` is, or will be."""
    place = path.absolute()
    return shutil.disk_usage(next(p for p in [place, *place.parents] if p.exists())).free


def peak_memory(device: str) -> int:
    """The most memory that this process has held on `device`, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform.startswith("linux"):
        # Not getrusage's: that begins with the peak of the process that started this one.
        return _status("VmHWM")
    info = psutil.Process().memory_info()
    if sys.platform == "win32":
        return int(info.peak_wset)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def held_memory(device: str) -> int:
    """What this process holds on `device` now, in bytes."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return int(psutil.Process().memory_info().rss)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    raise OSError(f"/proc/self/status has no {key}")


def _left_to_the_group() -> int | None:
    """What the control groups of this process (containers, services) leave it; None: no limit."""
    left = []
    try:
        lines = _CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = root / path.strip("/")
        # Inside a container the path is the host's, and the root is the container's own group.
        for place in {folder, *folder.parents, root}:
            if place.is_relative_to(root):
                left += _left(place, *names)
    return min(left, default=None)


def _left(folder: Path, limit: str, usage: str) -> list[int]:
    try:
        most, used = (folder / limit).read_text(), (folder / usage).read_text()
        cached = _reclaimable(folder)
        return [max(0, int(most) - int(used) + cached)]
    except (OSError, ValueError):  # `max`, which is no limit, among them
        return []


def _reclaimable(folder: Path) -> int:
    """File pages that a group is charged with and that give way."""
    for line in (folder / "memory.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
