"""Checkpoints on disk: whole or not there, and found out where they were damaged."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.errors import OnebaseError
from onebase.runs import checkpoint
from onebase.runs.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


def state(number: int) -> dict[str, Any]:
    return {
        "number": number,
        "weights": torch.full((50, 3), float(number)),
        "plain": {"a": [1, None, float("inf")], "b": (0.9, 0.95), "c": "客服"},
    }


def saved(folder: Path, count: int, limit: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, limit)
    for number in range(1, count + 1):
        checkpoints.save(state(number))
    return checkpoints


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    found = saved(tmp_path, 1).newest()
    assert found.state is not None
    assert torch.equal(found.state.pop("weights"), state(1)["weights"])
    assert found.state == {"number": 1, "plain": state(1)["plain"]}
    assert (found.name, found.damaged, found.half_written) == ("000001", {}, 0)


def test_none_yet(tmp_path: Path) -> None:
    found = Checkpoints(tmp_path / "not there", 1).newest()
    assert (found.name, found.state, found.damaged, found.half_written) == (None, None, {}, 0)


def test_the_newest_are_kept_and_numbers_are_not_given_twice(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, limit=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000003", "000004", "000005"]
    checkpoints.drop("000003")
    checkpoints.save(state(6))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000004", "000005", "000006"]
    checkpoints.thin(1)
    assert [path.name for path in tmp_path.iterdir()] == ["000006"]
    (tmp_path / "000006").rename(tmp_path / "1000000")  # numbers, not names, tell which is newest
    checkpoints.save(state(7))
    assert checkpoints.newest().name == "1000001"


def truncate(path: Path) -> None:
    file = path / "state.pt"
    os.truncate(file, file.stat().st_size // 2)


def flip(path: Path) -> None:
    file = path / "state.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def flip_in_manifest(path: Path) -> None:
    file = path / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    digest = manifest["sha256"]
    manifest["sha256"] = ("1" if digest[0] == "0" else "0") + digest[1:]
    file.write_text(json.dumps(manifest), encoding="utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "state.pt has .* bytes, not"),
    "emptied": (lambda path: (path / "state.pt").write_bytes(b""), "has 0 bytes"),
    "lengthened": (lambda path: os.truncate(path / "state.pt", 1 << 20), "bytes, not"),
    "bit flipped": (flip, "SHA-256 mismatch of state.pt"),
    "state missing": (lambda path: (path / "state.pt").unlink(), "No such file"),
    "manifest missing": (lambda path: (path / "manifest.json").unlink(), "manifest.json is miss"),
    "manifest empty": (lambda path: (path / "manifest.json").write_text(""), "can't be read"),
    "manifest no object": (lambda path: (path / "manifest.json").write_text("[]"), "can't be read"),
    "manifest without a key": (lambda path: (path / "manifest.json").write_text("{}"), "can't be"),
    "manifest not text": (
        lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"),
        "can't be read",
    ),
    "bit flipped in the manifest": (flip_in_manifest, "SHA-256 mismatch of state.pt"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_one_is_passed_over(damage: str, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 3, limit=3)
    spoil, reason = DAMAGES[damage]
    spoil(tmp_path / "000003")
    found = checkpoints.newest()
    assert found.state is not None
    assert (found.name, found.state["number"]) == ("000002", 2)
    assert list(found.damaged) == ["000003"]
    assert re.search(reason, found.damaged["000003"])


def test_every_bit_of_a_checkpoint_counts(tmp_path: Path) -> None:
    """Any one bit changed anywhere in its files: it is passed over."""
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save({"number": 1})
    checkpoints.save({"number": 2})
    for name in ("state.pt", "manifest.json"):
        file = tmp_path / "000002" / name
        whole = file.read_bytes()
        for at in range(0, len(whole), 7 if name == "state.pt" else 1):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            found = checkpoints.newest()
            assert (found.name, found.state) == ("000001", {"number": 1}), (name, at)
            assert list(found.damaged) == ["000002"]
        file.write_bytes(whole)
    assert checkpoints.newest().state == {"number": 2}


def test_none_is_good(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2)
    truncate(tmp_path / "000001")
    flip(tmp_path / "000002")
    found = checkpoints.newest()
    assert found.state is None
    assert list(found.damaged) == ["000002", "000001"]


def test_half_written_and_half_deleted_ones_are_no_checkpoints(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / ".000002.partial").mkdir()
    (tmp_path / ".000002.partial" / "state.pt").write_bytes(b"PK")
    (tmp_path / ".000000.dropped").mkdir()
    found = checkpoints.newest()
    assert (found.name, found.damaged, found.half_written) == ("000001", {}, 1)
    checkpoints.save(state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001", "000002"]


def test_one_that_is_being_deleted_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 2)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)  # killed before it
    checkpoints.drop("000002")
    found = checkpoints.newest()
    assert (found.name, found.damaged, found.half_written) == ("000001", {}, 0)


def test_another_version_s_format_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        checkpoints = saved(tmp_path, 1)
    with pytest.raises(OnebaseError, match="another version of onebase") as caught:
        checkpoints.newest()
    assert "version that wrote it" in caught.value.remedy
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["manifest.json", "state.pt"]


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_leaves_the_last_one_good(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    class Small:
        def __init__(self, file: Path) -> None:
            self._file = file.open("wb")
            self._room = room

        def write(self, data: bytes) -> int:
            self._room -= len(data)
            if self._room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    real = Path.open

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        small = mode == "wb" and self.name == "state.pt"
        if not small:
            return real(self, mode, *args, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", real)
            return Small(self)

    monkeypatch.setattr(Path, "open", opened)
    big = {**state(3), "weights": torch.zeros(10000)}
    with pytest.raises(OSError, match="No space") as caught:
        checkpoints.save(big)
    assert caught.value.errno == errno.ENOSPC
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    monkeypatch.setattr(Path, "open", real)
    assert checkpoints.newest().name == "000002"
    checkpoints.save(big)
    assert checkpoints.newest().name == "000003"


def test_a_disk_that_is_full_when_it_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    assert checkpoints.newest().name == "000001"


def test_it_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power cut needs: files, their folder, the new name, the outer folder."""
    happened: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        happened.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_sync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        happened.append(f"{self.name} -> {target.name}")
        return real_rename(self, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    checkpoints.save(state(1))
    once = ["state.pt", "manifest.json", ".000001.partial"]
    assert happened == [*once, ".000001.partial -> 000001", "checkpoints"]


def test_only_tensors_and_plain_values_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that would run code when unpickled is refused, its checksum right or not."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("ran",)

    checkpoints = saved(tmp_path, 1)
    checkpoints.save({"a": Evil()})
    found = checkpoints.newest()
    assert found.name == "000001"
    assert list(found.damaged) == ["000002"]
    assert capsys.readouterr().out == ""
