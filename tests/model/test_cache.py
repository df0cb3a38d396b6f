"""Models are added to the cache atomically."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from onebase.model.cache import add_to_cache, cached_models, is_model_folder, models_folder

LeftIn = Callable[[], list[str]]


def fill(folder: Path, text: str = "{}") -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")


def test_the_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path))
    assert models_folder() == tmp_path / "models"
    monkeypatch.setenv("ONEBASE_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert models_folder() == tmp_path / "home" / ".cache" / "onebase" / "models"


def test_a_target_appears_at_the_end(cache: Path) -> None:
    target = cache / "tiny"

    def make(folder: Path) -> None:
        fill(folder)
        assert not target.exists()
        assert cached_models() == []

    assert add_to_cache(target, make) == target
    assert is_model_folder(target)
    assert cached_models() == [target]


def test_a_complete_target_is_not_made_again(cache: Path) -> None:
    add_to_cache(cache / "tiny", fill)

    def never(_: Path) -> None:
        pytest.fail("made twice")

    assert add_to_cache(cache / "tiny", never) == cache / "tiny"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_an_interruption_leaves_nothing(
    cache: Path, left_in: LeftIn, error: type[BaseException]
) -> None:
    def interrupted(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(error):
        add_to_cache(cache / "tiny", interrupted)
    assert left_in() == []
    add_to_cache(cache / "tiny", fill)  # and the way is free
    assert cached_models() == [cache / "tiny"]


def test_what_a_killed_process_left_is_cleared(cache: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from onebase.model.cache import add_to_cache\n"
        "def make(folder): (folder / 'config.json').touch(); os._exit(9)\n"
        "add_to_cache(Path(sys.argv[1]), make)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(cache / "tiny")], check=False)
    assert killed.returncode == 9
    assert (cache / ".tiny.partial" / "config.json").exists()
    assert cached_models() == []

    def make(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        fill(folder)

    add_to_cache(cache / "tiny", make)
    assert [file.name for file in cache.iterdir() if file.is_dir()] == ["tiny"]


def test_an_incomplete_target_is_replaced(cache: Path) -> None:
    (cache / "tiny").mkdir(parents=True)
    (cache / "tiny" / "stale").touch()
    add_to_cache(cache / "tiny", fill)
    assert [file.name for file in (cache / "tiny").iterdir()] == ["config.json"]


def test_whoever_waits_takes_what_the_other_made(cache: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.1)
        fill(folder)

    threads = [threading.Thread(target=add_to_cache, args=(cache / "tiny", make)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert cached_models() == [cache / "tiny"]


def test_after_a_failure_the_next_in_line_tries(cache: Path) -> None:
    tries: list[Path] = []

    def make(folder: Path) -> None:
        tries.append(folder)
        time.sleep(0.1)
        if len(tries) == 1:
            raise OSError("no room")
        fill(folder)

    def first() -> None:
        with pytest.raises(OSError, match="no room"):
            add_to_cache(cache / "tiny", make)

    other = threading.Thread(target=first)
    other.start()
    while not tries:
        time.sleep(0.01)
    add_to_cache(cache / "tiny", make)
    other.join()
    assert len(tries) == 2
    assert cached_models() == [cache / "tiny"]


def test_other_models_do_not_wait(cache: Path) -> None:
    def make(folder: Path) -> None:
        add_to_cache(cache / "two", fill)
        fill(folder)

    add_to_cache(cache / "one", make)
    assert cached_models() == [cache / "one", cache / "two"]


def test_an_empty_cache_has_no_models(cache: Path) -> None:
    assert cached_models() == []
    (cache / "stray").mkdir(parents=True)
    (cache / "file").touch()
    assert cached_models() == []
