"""Where compiled kernels are kept."""

from pathlib import Path

import pytest

from onebase.engine.lean import jit


def doubled(x: int) -> int:
    return 2 * x


def test_kernels_are_kept_among_the_caches_of_onebase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path))
    assert jit.compiled_and_cached(doubled)(4) == 8
    assert list(tmp_path.rglob("*doubled*.nbc"))


def test_a_cache_that_cannot_be_written_to_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "file"))
    assert jit.cache_folder() is None
    assert jit.compiled_and_cached(doubled)(4) == 8


def test_any_change_to_a_kernel_makes_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path))
    before = jit.cache_folder()
    (tmp_path / "step.py").write_text("changed")
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    assert before != jit.cache_folder()
