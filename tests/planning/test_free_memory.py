"""Free memory and disk, with and without the limits of control groups."""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from onebase.planning import free_memory


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's control group, of version 2, below one that a test may limit."""
    folder = tmp_path / "cgroup" / "outer" / "inner"
    folder.mkdir(parents=True)
    (tmp_path / "self").write_text("0::/outer/inner\n", encoding="utf-8")
    monkeypatch.setattr(free_memory, "_CGROUP", tmp_path / "self")
    monkeypatch.setattr(free_memory, "_CGROUPS", tmp_path / "cgroup")
    return folder


def limit(folder: Path, most: str, used: int, cached: int = 0, version: int = 2) -> None:
    names = ("memory.max", "memory.current")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{used}\n")
    key = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{key} {cached}\n")


def test_without_a_limit_it_is_what_the_system_has(
    group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(group, "max", 5)
    system = psutil.virtual_memory()._replace(available=123_456)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: system)
    assert free_memory._left_to_the_group() is None
    assert free_memory.free_memory("cpu") == 123_456


def test_a_limit_holds_and_files_give_way(group: Path) -> None:
    limit(group, "10000", 4000, cached=1000)
    assert free_memory.free_memory("cpu") == 7000


def test_the_limit_of_an_outer_group_holds(group: Path) -> None:
    limit(group, "10000", 4000)
    limit(group.parent, "5000", 4500)
    assert free_memory.free_memory("cpu") == 500
    limit(group.parent, "5000", 5500)
    assert free_memory.free_memory("cpu") == 0


def test_the_first_version(group: Path, tmp_path: Path) -> None:
    memory = tmp_path / "cgroup" / "memory" / "box"
    memory.mkdir(parents=True)
    (tmp_path / "self").write_text("3:cpu:/\n4:memory:/box\n", encoding="utf-8")
    limit(memory, "10000", 4000, cached=1000, version=1)
    assert free_memory.free_memory("cpu") == 7000


def test_a_container_sees_its_group_as_the_root(group: Path, tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/somewhere/of/the/host\n", encoding="utf-8")
    limit(tmp_path / "cgroup", "10000", 4000)
    assert free_memory.free_memory("cpu") == 6000


def test_the_disk_of_a_folder_to_come(tmp_path: Path) -> None:
    there = os.statvfs(tmp_path)  # others write to it in the meantime
    free = there.f_bavail * there.f_frsize
    assert free_memory.free_disk(tmp_path / "not" / "yet") == pytest.approx(free, rel=0.01)


def test_the_peak_is_of_this_process() -> None:
    size = (
        free_memory.peak_memory("cpu") - free_memory.held_memory("cpu") + (80 << 20)
    )  # beyond any peak so far
    peak, held = free_memory.peak_memory("cpu"), free_memory.held_memory("cpu")
    block = np.ones(size, dtype=np.uint8)
    block[::4096] = 2
    assert free_memory.held_memory("cpu") - held == pytest.approx(size, abs=8 << 20)
    assert free_memory.peak_memory("cpu") - peak == pytest.approx(80 << 20, abs=8 << 20)
    del block
    assert free_memory.held_memory("cpu") - held == pytest.approx(0, abs=8 << 20)
    assert free_memory.peak_memory("cpu") - peak == pytest.approx(80 << 20, abs=8 << 20)
