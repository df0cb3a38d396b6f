"""Characters that a terminal can't encode are escaped and never make a command fail."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import SUPPORT, Run, write_rows

from onebase.adapters.workspace import Workspace
from onebase.cli.app import main
from onebase.runs.run import RunStore

ENCODINGS = ["ascii", "gbk", "latin-1"]


class Terminal:
    """Streams with one encoding that raise for other characters, as Python opens them."""

    def __init__(self, encoding: str, monkeypatch: pytest.MonkeyPatch, stdin: bytes = b"") -> None:
        self.out, self.err = io.BytesIO(), io.BytesIO()
        self.encoding = encoding
        for name, buffer in (("stdout", self.out), ("stderr", self.err)):
            stream = io.TextIOWrapper(
                buffer, encoding=encoding, errors="strict", write_through=True
            )
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))

    def run(self, *arguments: str | Path) -> int:
        with pytest.raises(SystemExit) as ended:
            main([str(item) for item in arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    @property
    def output(self) -> str:
        return self.out.getvalue().decode(self.encoding)

    @property
    def errors(self) -> str:
        return self.err.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_training_ends_well(
    encoding: str, as_json: bool, desk: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = desk / "数据 é🙂.jsonl"
    write_rows(file, SUPPORT)
    terminal = Terminal(encoding, monkeypatch)
    arguments = ["train", "--task", "t", "--data", file, "--base", base, "--lang", "zh"]
    code = terminal.run(*arguments, "--set", "epochs=1", *(["--json"] if as_json else []))
    assert code == 0, terminal.errors
    if as_json:
        assert json.loads(terminal.output)["adapters"][0]["task"] == "t"
    assert (desk / "ws" / "adapters" / "t").is_dir()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_is_printed(
    encoding: str, as_json: bool, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert desk
    terminal = Terminal(encoding, monkeypatch)
    arguments = ["generate", "--task", "任务🙂", "--prompt", "x", "--lang", "zh"]
    assert terminal.run(*arguments, *(["--json"] if as_json else [])) == 2
    assert "Traceback" not in terminal.errors
    if as_json:
        assert "任务🙂" in json.loads(terminal.output)["error"]["message"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.usefixtures("trained")
def test_a_table_is_printed(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(encoding, monkeypatch)
    assert terminal.run("adapters", "list", "--lang", "zh") == 0, terminal.errors
    assert "support" in terminal.output


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("typed", [b"caf\xe9?\n", "你好".encode("gbk") + b"\n", b"\xff\xfe\n"])
def test_input_in_another_encoding_is_answered(
    typed: bytes, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal("utf-8", monkeypatch, stdin=typed)
    arguments = ["chat", "--task", "support", "--base", base, "--max-tokens", "2", "--json"]
    assert terminal.run(*arguments) == 0, terminal.errors
    assert len(json.loads(terminal.output)["answers"]) == 1


@pytest.mark.parametrize("place", ["file", "folder", "file without --json"])
def test_a_data_file_whose_path_is_not_utf_8_is_refused_before_training(
    place: str, desk: Path, base: str, onebase: Run
) -> None:
    name = os.fsdecode(b"caf\xe9")
    folder = desk / name if place == "folder" else desk
    file = folder / ("rows.jsonl" if place == "folder" else f"{name}.jsonl")
    try:
        folder.mkdir(exist_ok=True)
        write_rows(file, SUPPORT)
    except OSError:
        pytest.skip("this disk takes no such name")
    as_json = [] if "without" in place else ["--json"]
    arguments = ("train", "--task", "t", "--data", str(file), "--base", base, *as_json)
    result = onebase(*arguments, "--set", "epochs=1")
    assert result.code == 3
    assert "is not UTF-8" in result.err
    assert RunStore(Workspace(desk / "ws")).list() == []
    if as_json:
        assert "is not UTF-8" in result.json["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--prompt", "caf\udce9"),
        ("generate", "--prompt=caf\udce9"),
        ("classify", "--text", "x", "--labels", "\udcff,b"),
        ("train", "--task", "t", "--data", "no-such-\udce9.jsonl"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_an_argument_that_is_not_utf_8_is_refused(
    arguments: tuple[str, ...], as_json: bool, onebase: Run
) -> None:
    result = onebase(*arguments, *(["--json"] if as_json else []))
    assert result.code == 2
    assert "is not UTF-8" in result.err
    assert "itself failed" not in result.err


@pytest.mark.parametrize("place", ["option", "variable", "current folder"])
@pytest.mark.parametrize("command", ["train", "align kto", "race"])
def test_a_workspace_whose_path_is_not_utf_8_is_refused_before_training(
    place: str,
    command: str,
    desk: Path,
    base: str,
    onebase: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = desk / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this disk takes no such name")
    data = str(desk / "support.jsonl")
    arguments = [*command.split(), "--task", "t", "--data", data, "--base", base, "--json"]
    if place == "option":
        arguments += ["--workspace", str(folder)]
    elif place == "variable":
        monkeypatch.setenv("ONEBASE_WORKSPACE", str(folder / "ws"))
    else:
        monkeypatch.chdir(folder)
    result = onebase(*arguments)
    assert result.code == 1
    assert "workspace" in result.json["error"]["message"]
    assert "is not UTF-8" in result.json["error"]["message"]
    assert "ONEBASE_WORKSPACE" in result.json["error"]["remedy"]
    assert "Loading" not in result.err


def test_an_adapter_whose_path_is_not_utf_8_is_refused(desk: Path, base: str, onebase: Run) -> None:
    folder = desk / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this disk takes no such name")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    result = onebase("adapters", "import", folder, "--task", "t", "--base", base)
    assert result.code == 2
    assert "is not UTF-8" in result.err
    assert "Rename the folder" in result.err
