"""A task can be used from any folder; a read-only folder is reported before any work."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Run

from onebase.cli.app import _folder_remedy
from onebase.model.base import Base


def train_and_move(onebase: Run, desk: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a task on a base named relatively, then go to another folder."""
    monkeypatch.setenv("ONEBASE_WORKSPACE", str(desk / "ws"))
    arguments = ("train", "--task", "t", "--data", "support.jsonl", "--base", base)
    result = onebase(*arguments, "--set", "epochs=1")
    assert result.code == 0, result.err
    (desk / "elsewhere").mkdir()
    monkeypatch.chdir(desk / "elsewhere")


def answers(onebase: Run) -> None:
    result = onebase("generate", "--task", "t", "--prompt", "hello", "--max-tokens", "2", "--json")
    assert result.code == 0, result.err


@pytest.mark.parametrize("name", ["tiny", "基 座 #1", "./tiny", "deep/er/tiny"])
def test_a_folder_named_relatively_is_found_from_elsewhere(
    name: str, desk: Path, base: str, onebase: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, desk / name)
    train_and_move(onebase, desk, name, monkeypatch)
    answers(onebase)
    out = onebase("export", "--task", "t", "--to", "merged", "--out", "merged", "--json")
    assert out.code == 0, out.err


def test_a_gguf_file_named_relatively_is_found_from_elsewhere(
    desk: Path, base: str, onebase: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        onebase("export", "--task", "base", "--base", base, "--to", "gguf", "--out", "made").code
        == 0
    )
    shutil.move(desk / "made" / "model.gguf", desk / "模 型 #1.gguf")
    train_and_move(onebase, desk, "模 型 #1.gguf", monkeypatch)
    answers(onebase)


def test_the_base_in_a_remedy_can_be_pasted(
    desk: Path,
    base: str,
    onebase: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shutil.copytree(base, desk / "基 座 #1")
    train_and_move(onebase, desk, "基 座 #1", monkeypatch)
    other = Base.load(base)
    other.model.model.embed_tokens.weight.data += 1
    folder = tmp_path_factory.mktemp("other")
    other.model.save_pretrained(folder)
    other.tokenizer.save_pretrained(folder)
    result = onebase("generate", "--task", "t", "--prompt", "x", "--base", folder, "--json")
    assert result.code == 2
    words = shlex.split(result.json["error"]["remedy"].replace(",", " "))
    assert str(desk / "基 座 #1") == words[words.index("--base") + 1]


@pytest.mark.parametrize("command", ["train", "align dpo", "race"])
def test_a_read_only_workspace_is_reported_before_the_base_is_loaded(
    command: str, desk: Path, base: str, onebase: Run
) -> None:
    (desk / "file").write_text("", encoding="utf-8")
    arguments = [*command.split(), "--task", "t", "--data", "support.jsonl", "--base", base]
    result = onebase(*arguments, "--workspace", "file/ws", "--json")
    assert result.code == 1, result.err
    assert "file is a file" in result.json["error"]["message"]
    assert "ONEBASE_WORKSPACE" in result.json["error"]["remedy"]
    assert "Loading" not in result.err


def test_the_remedy_names_the_option_of_the_folder(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(desk / "cache"))
    assert "ONEBASE_CACHE" in _folder_remedy(str(desk / "cache" / "models" / "x"), [])
    assert "ONEBASE_WORKSPACE" in _folder_remedy("ws/adapters/t", [])
    for option in (["--workspace", str(desk / "mine")], [f"--workspace={desk / 'mine'}"]):
        assert "--workspace" in _folder_remedy(str(desk / "mine" / "runs"), ["train", *option])
    for other in (str(desk / "out"), None, 3):
        assert "choose another folder" not in _folder_remedy(other, ["--workspace"])


def cache_in_a_file(desk: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ONEBASE_CACHE", str(desk / "file/cache"))
    return "ONEBASE_CACHE"


def workspace_in_a_file(desk: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ONEBASE_WORKSPACE", str(desk / "file/ws"))
    return "ONEBASE_WORKSPACE"


def cache_that_is_read_only(desk: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ONEBASE_CACHE", str(desk / "cache"))
    monkeypatch.setattr("onebase.model.cache.os.access", lambda *_: False)
    return "ONEBASE_CACHE"


def no_home(_: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ONEBASE_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    return "ONEBASE_CACHE"


def copied_adapter(desk: Path, _: pytest.MonkeyPatch) -> str:
    folder = desk / "ws/adapters/copied/1"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    return "onebase adapters import"


@pytest.mark.parametrize(
    "fault",
    [cache_in_a_file, workspace_in_a_file, cache_that_is_read_only, no_home, copied_adapter],
)
def test_doctor_reports_what_makes_other_commands_fail(
    fault: Callable[[Path, pytest.MonkeyPatch], str],
    desk: Path,
    onebase: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert onebase("doctor", "--json").json["problems"] == []
    (desk / "file").write_text("", encoding="utf-8")
    words = fault(desk, monkeypatch)
    result = onebase("doctor", "--json")
    assert result.code == 0, result.err
    problems = result.json["problems"]
    assert any(words in item["remedy"] for item in problems)
    assert problems[0]["message"] in onebase("doctor").out
