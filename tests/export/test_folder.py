"""Output folders are created atomically and never change the user's files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onebase.errors import UsageError
from onebase.export.folder import new_folder


def fill(folder: Path) -> None:
    (folder / "a").write_text("1", encoding="utf-8")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("there", [False, True])
def test_new_or_empty(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    new_folder(out, fill)
    assert names(tmp_path) == ["deep", "deep/out", "deep/out/a"]


def test_a_users_files_stay(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        new_folder(tmp_path, fill)
    with pytest.raises(UsageError, match="is a file"):
        new_folder(tmp_path / "a", fill)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def stop(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(error):
        new_folder(tmp_path / "out", stop)
    assert names(tmp_path) == []


def test_filled_by_another_in_the_meantime(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        fill(folder)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()

    with pytest.raises(UsageError, match="not empty"):
        new_folder(tmp_path / "out", write)
    assert names(tmp_path) == ["out", "out/theirs"]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process in (gone.pid, os.getppid()):
        (tmp_path / f".out.{process}.partial").mkdir()
        fill(tmp_path / f".out.{process}.partial")
    (tmp_path / ".out.notes.partial").mkdir()
    new_folder(tmp_path / "out", fill)
    alive = f".out.{os.getppid()}.partial"
    assert names(tmp_path) == sorted([alive, f"{alive}/a", ".out.notes.partial", "out", "out/a"])


@pytest.mark.parametrize("place", ["the folder", "one above it", "the current one"])
def test_a_path_that_is_not_utf_8(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this disk takes no such name")
    if place == "the current one":
        monkeypatch.chdir(folder)
    out = {"the folder": folder, "one above it": folder / "out"}.get(place, Path("out"))
    with pytest.raises(UsageError, match="not UTF-8"):
        new_folder(out, fill)
    assert names(folder) == []
