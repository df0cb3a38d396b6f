"""A user's YAML: a key that stands twice is refused, by key and line."""

from pathlib import Path

import pytest

from onebase.data.yaml_file import read_yaml
from onebase.errors import UsageError


def write(folder: Path, text: str) -> Path:
    file = folder / "tasks.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "line", "key", "remedy"),
    [
        ("jobs:\n- {task: one}\njobs:\n- {task: two}\n", 3, "jobs", "under one jobs:"),
        ("jobs:\n- task: a\n  set: {epochs: 1, epochs: 2}\n", 3, "epochs", "Keep one"),
        ("jobs:\n- task: a\n  data: x\n  task: a\n", 4, "task", "Keep one"),
        ("base: a\n'base': b\n", 2, "base", "Keep one"),
        ("on: 1\nyes: 2\n", 2, "yes", "Keep one"),  # YAML 1.1 reads both as true
    ],
)
def test_a_key_that_stands_twice_is_refused(
    tmp_path: Path, text: str, line: int, key: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as refused:
        read_yaml(write(tmp_path, text))
    assert f"tasks.yaml:{line} has the key '{key}' again" in refused.value.message
    assert remedy in refused.value.remedy


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a: {k: 1}\nb: {k: 2}\n", {"a": {"k": 1}, "b": {"k": 2}}),
        (
            "a: &x {k: 1, m: 1}\nb:\n  <<: *x\n  k: 2\n",
            {"a": {"k": 1, "m": 1}, "b": {"k": 2, "m": 1}},
        ),
        ("\ufeffa: 1\n", {"a": 1}),
        ("", None),
    ],
)
def test_other_files_are_read_as_ever(tmp_path: Path, text: str, content: object) -> None:
    assert read_yaml(write(tmp_path, text)) == content


@pytest.mark.parametrize(
    "text", ["[1, 2", "{" * 5000, "a: !!python/object:os.system x\n", "? [1]\n: 2"]
)
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is not YAML"):
        read_yaml(write(tmp_path, text))
