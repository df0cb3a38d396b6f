from pathlib import Path

import pytest

from onebase.data.hub import choose
from onebase.data.rows import read_rows
from onebase.errors import DataError


def test_the_training_split_of_one_kind_is_chosen() -> None:
    files = ["README.md", "dataset_infos.json", "data/train-1.csv", "data/test.csv"]
    assert choose("a/b", files) == ["data/train-1.csv"]
    shards = ["data/train-00001.parquet", "data/train-00000.parquet", "train.jsonl"]
    assert choose("a/b", shards) == sorted(shards[:2])
    assert choose("a/b", ["x.jsonl"]) == ["x.jsonl"]


def test_several_parts_are_not_mixed() -> None:
    with pytest.raises(DataError, match=r"several parts: main, socratic\. Download one with"):
        choose("openai/gsm8k", ["main/train.parquet", "socratic/train.parquet"])


def test_a_repository_without_data_is_refused() -> None:
    with pytest.raises(DataError, match="'a/b' has no readable file"):
        choose("a/b", ["README.md", "loader.py"])


def test_offline_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as error:
        read_rows("no-such-owner/no-such-set")
    assert "'no-such-owner/no-such-set' can't be downloaded" in error.value.message
    assert "offline" in error.value.message
    assert "HF_ENDPOINT" in error.value.remedy


def test_a_cached_data_set_is_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    repository = tmp_path / "datasets--no-such-owner--no-such-set"
    snapshot = repository / "snapshots" / commit / "data"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (snapshot / "train.jsonl").write_text('{"input": "q", "output": "a"}\n')
    (row,) = read_rows("no-such-owner/no-such-set").rows
    assert row.values == {"input": "q", "output": "a"}
