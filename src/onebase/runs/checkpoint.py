"""Checkpoints on disk: each one folder, written aside, synced and renamed; checked when read.

`000012/` holds `state.pt`, read back as tensors and plain values only, and `manifest.json` with
its size and SHA-256. A checkpoint exists whole or not at all; one that was damaged later is detected
and skipped.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, cast

import torch

from onebase.errors import OnebaseError
from onebase.language import say

STATE = "state.pt"
MANIFEST = "manifest.json"
FORMAT = 3
# 1 does not say whether anything had a gradient; 1 and 2 lay a run's state out in two ways.
_READABLE = (1, 2, FORMAT)
_NUMBER = re.compile(r"[0-9]{6,}")


@dataclass(frozen=True)
class Newest:
    """The newest good checkpoint's `name` and `state`, None where there is none; `damaged` has the
    newer ones that can't be used, with the reason; `half_written` is the number of those cut off.
    """

    name: str | None
    state: dict[str, Any] | None
    damaged: dict[str, str]
    half_written: int


class _Damaged(Exception):
    """Why a checkpoint can't be used."""


class Checkpoints:
    """The newest `limit` checkpoints of a run, in `folder`. One process at a time."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state` (tensors and plain values) as the newest checkpoint, and drop the oldest.

        Raises OSError, on a full disk for one, and then leaves the others as they were.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        number = max(self._numbers(), default=0) + 1
        partial = self._folder / f".{number:06d}.partial"
        try:
            partial.mkdir()
            manifest = _write_state(partial / STATE, {"format": FORMAT, **state})
            with (partial / MANIFEST).open("w", encoding="utf-8") as stream:
                json.dump(manifest, stream)
                stream.flush()
                os.fsync(stream.fileno())
            _sync_folder(partial)
            partial.rename(self._path(number))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _sync_folder(self._folder)
        self.thin(self._limit)

    def newest(self) -> Newest:
        """The newest checkpoint that is whole. Raises OnebaseError for another version's."""
        half_written = len(list(self._folder.glob(".*.partial")))
        damaged: dict[str, str] = {}
        for number in sorted(self._numbers(), reverse=True):
            path = self._path(number)
            try:
                return Newest(path.name, _read_state(path), damaged, half_written)
            except _Damaged as reason:
                damaged[path.name] = str(reason)
        return Newest(None, None, damaged, half_written)

    def drop(self, name: str) -> None:
        """Delete a checkpoint: gone at once, whatever interrupts the deletion."""
        hidden = self._folder / f".{name}.dropped"
        (self._folder / name).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def thin(self, limit: int) -> None:
        """Drop all but the newest `limit`."""
        for number in sorted(self._numbers())[:-limit]:
            self.drop(self._path(number).name)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}"

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return [int(p.name) for p in self._folder.iterdir() if _NUMBER.fullmatch(p.name)]

    def _sweep(self) -> None:
        """Clear away what a killed process left half written or half deleted."""
        for pattern in (".*.partial", ".*.dropped"):
            for path in self._folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)


class _Hashing:
    """A file that is only written to, from start to end, and hashed meanwhile."""

    def __init__(self, file: Path) -> None:
        self._stream = file.open("wb")
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write and hash `data`."""
        try:
            self._stream.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing: `close` syncs."""

    def close(self, *, sync: bool) -> None:
        """Close the file, its content safe on the disk if `sync`."""
        try:
            if sync:
                self._stream.flush()
                os.fsync(self._stream.fileno())
        finally:
            self._stream.close()


def _write_state(file: Path, state: dict[str, Any]) -> dict[str, Any]:
    stream = _Hashing(file)
    written = False
    try:
        torch.save(state, cast(IO[bytes], stream))
        written = True
    except RuntimeError as error:
        if stream.error is None:
            raise
        raise stream.error from error  # torch turns a failed write into its own complaint
    finally:
        stream.close(sync=written)
    return {"bytes": stream.bytes, "sha256": stream.digest.hexdigest()}


def _read_state(path: Path) -> dict[str, Any]:
    """Raises _Damaged, and OnebaseError for another version's format."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        expected, size = manifest["sha256"], manifest["bytes"]
    except FileNotFoundError:
        raise _Damaged(say(f"{MANIFEST} is missing", f"缺少 {MANIFEST}")) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(say(f"{MANIFEST} can't be read", f"无法读取 {MANIFEST}")) from error
    try:
        with (path / STATE).open("rb") as stream:
            actual = stream.seek(0, os.SEEK_END)
            if actual != size:
                raise _Damaged(
                    say(
                        f"{STATE} has {actual} bytes, not {size}",
                        f"{STATE} 为 {actual} 字节，而应为 {size}",
                    )
                )
            stream.seek(0)
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                raise _Damaged(say(f"SHA-256 mismatch of {STATE}", f"{STATE} 的 SHA-256 不符"))
            stream.seek(0)
            state: dict[str, Any] = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise _Damaged(say(f"{STATE}: {reason}", f"{STATE}：{reason}")) from error
    except (UnpicklingError, RuntimeError) as error:  # not what this product writes
        raise _Damaged(say(f"{STATE} can't be read", f"无法读取 {STATE}")) from error
    if state.pop("format") not in _READABLE:
        raise _later(path)
    return state


def _later(path: Path) -> OnebaseError:
    return OnebaseError(
        say(
            f"{path} is a checkpoint of another version of onebase.",
            f"{path} 是另一版本 onebase 的检查点。",
        ),
        say(
            "Resume it with the version that wrote it, or give its command again with --restart.",
            "请用写入它的版本继续，或在原来的命令后加 --restart 重新开始。",
        ),
    )


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` safe on the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
