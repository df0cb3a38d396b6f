"""`onebase export`: its JSON, its files, and what it says when it can't."""

from pathlib import Path
from typing import Any

import pytest

from onebase.language import say
from onebase.model.base import Base

Run = Any
FILES = {
    "peft": ["adapter_config.json", "adapter_model.safetensors", "onebase.json"],
    "gguf": ["adapter.gguf", "model.gguf"],
}


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("to", FILES)
def test_json(onebase: Run, to: str) -> None:
    result = onebase("export", "--task", "support@1", "--to", to, "--out", "out", "--json")
    assert result.code == 0, result
    shown = result.json
    assert (shown["task"], shown["version"], shown["to"], shown["out"]) == ("support", 1, to, "out")
    assert [file["name"] for file in shown["files"]] == FILES[to]
    for file in shown["files"]:
        assert file["bytes"] == (Path("out") / file["name"]).stat().st_size
    assert sorted(path.name for path in Path("out").iterdir()) == FILES[to]


@pytest.mark.usefixtures("trained")
def test_the_merged_folder_is_a_base(onebase: Run) -> None:
    result = onebase(
        *("export", "--task", "support", "--to", "merged"), "--out", "out", "--dtype", "bf16"
    )
    assert result.code == 0, result
    assert "out/model.safetensors: " in result.out
    assert Base.load("out").model.config.dtype is not None
    ask = ("generate", "--base", "out", "--prompt", "Hi", "--max-tokens", "2")
    assert onebase(*ask).code == 0


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--task", "suport", "--to", "peft"), ("'suport'", "Valid: base, mood, support.")),
        (("--task", "support@9", "--to", "peft"), ("'support@9'", "support@1, support@2")),
        (("--task", "support", "--to", "onnx"), ("'onnx'", "Valid: gguf, merged, peft.")),
        (("--task", "support", "--to", "gguf", "--dtype", "q4"), ("'q4'", "f16, f32, q8_0")),
        (
            ("--task", "mood", "--to", "merged"),
            ("mood@1 has virtual tokens, which can't be merged", "--to peft"),
        ),
        (
            ("--task", "mood", "--to", "gguf"),
            ("mood@1 has virtual tokens, which can't be merged", "--to peft"),
        ),
        (("--task", "support"), ("--to",)),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("as_json", [False, True])
def test_wrong_use(
    onebase: Run, arguments: tuple[str, ...], words: tuple[str, ...], as_json: bool
) -> None:
    form = ("--json",) if as_json else ()
    result = onebase("export", *arguments, "--out", "out", *form)
    assert result.code == 2, result
    assert "Traceback" not in result.err
    if as_json:
        assert result.json["error"]["code"] == "usage"
    else:
        assert result.out == ""
    for word in words:
        assert word in result.err
    assert not Path("out").exists()


@pytest.mark.usefixtures("trained")
def test_a_folder_with_files_is_refused(onebase: Run, desk: Path) -> None:
    (desk / "out").mkdir()
    (desk / "out" / "mine").write_text("1", encoding="utf-8")
    result = onebase("export", "--task", "support", "--to", "peft", "--out", "out")
    assert result.code == 2
    assert "The folder out is not empty." in result.err
    assert [path.name for path in (desk / "out").iterdir()] == ["mine"]


def test_a_missing_base(onebase: Run, trained: Path, tmp_path: Path) -> None:
    record = trained / "adapters/support/2/onebase.json"
    text = record.read_text(encoding="utf-8")
    folder = onebase("adapters", "list", "--json").json["adapters"][-1]["base"]
    record.write_text(text.replace(folder, "no/such"), encoding="utf-8")
    result = onebase("export", "--task", "support", "--to", "gguf", "--out", "out", "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == "missing_base"
    assert "support@2 was trained on the base no/such" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("trained")
def test_chinese(onebase: Run) -> None:
    result = onebase(*("export", "--task", "mood", "--to", "gguf", "--out", "out", "--lang", "zh"))
    assert "无法合并到基座" in result.err
    assert say("a", "b") == "b"
