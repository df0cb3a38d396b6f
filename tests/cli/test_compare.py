"""`onebase compare`: flags, the config of an earlier comparison, and the command in the report."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run

from onebase.cli import recommend_report
from onebase.compare.record import FILE

QUICK = (
    *("--methods", "ia3,prompt-tuning", "--seeds", "1", "--answer-tokens", "4", "--no-alone"),
    *("--set", "epochs=1", "--set", "warmup=1"),
)


def compared(onebase: Run, base: str, *more: str) -> Any:
    """A quick comparison."""
    result = onebase(
        "compare", "--task", "mood", "--data", "mood.jsonl", "--base", base, *QUICK, *more, "--json"
    )
    assert result.code == 0, result.err
    return result.json


@pytest.fixture
def run(onebase: Run, base: str, desk: Path) -> Path:
    """The run of a quick comparison."""
    compared(onebase, base)
    (folder,) = (desk / "ws" / "runs").iterdir()
    return folder


def test_the_command_in_the_report(onebase: Run, run: Path) -> None:
    report = (run / "report" / "report.md").read_text(encoding="utf-8")
    (command,) = [line for line in report.splitlines() if line.startswith("onebase compare")]
    words = shlex.split(command)
    assert words[:3] == ["onebase", "compare", "-c"]
    assert Path(words[3]).name == "config.yaml"
    again = onebase(*words[1:], "--json")
    assert again.code == 0, again.err
    (other,) = [folder for folder in run.parent.iterdir() if folder != run]
    arms = json.loads((other / FILE).read_bytes())["comparison"]["arms"]
    assert len(arms) == 4
    assert all(arm["reused"] for arm in arms)


def test_from_another_folder(
    onebase: Run, base: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data and the user's metric are where they were."""
    (desk / "scores.py").write_text(
        "def brief(answer, reference, input):\n    return -float(len(answer))\n", encoding="utf-8"
    )
    compared(onebase, base, "--score", "scores.py:brief", "--metric", "brief")
    (first,) = (desk / "ws" / "runs").iterdir()
    (desk / "elsewhere").mkdir()
    monkeypatch.chdir(desk / "elsewhere")
    result = onebase("compare", "-c", first / "config.yaml", "--workspace", desk / "ws", "--json")
    assert result.code == 0, result.err
    (second,) = [folder for folder in (desk / "ws" / "runs").iterdir() if folder != first]
    made = json.loads((second / FILE).read_bytes())["comparison"]
    assert made["metric"] == "brief"
    assert all(arm["reused"] for arm in made["arms"])


def test_an_edited_config(onebase: Run, run: Path) -> None:
    config = run / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("  seeds: 1\n", "  seedz: 1\n"), encoding="utf-8")
    result = onebase("compare", "-c", config)
    assert result.code == 2
    assert str(config) in result.err
    assert "'seedz'" in result.err
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--seeds", "5"), "--seeds"),
        (("--task", "mood", "--data", "mood.jsonl"), "--task, --data"),
        (("--no-alone", "--tune", "10k"), "--tune, --no-alone"),
        (("--base", "x", "--precision", "fp32"), "--base, --precision"),
        (("--set", "epochs=2", "--seed", "3"), "--seed, --set"),
        (("--held-out", "mood.jsonl"), "--held-out"),
        (("--metric", "loss"), "--metric"),
    ],
)
def test_flags_beside_a_config(flags: tuple[str, ...], named: str, onebase: Run) -> None:
    result = onebase("compare", "-c", "config.yaml", *flags)
    assert result.code == 2
    told = result.err.partition("Both -c and ")[2].partition(" were given")[0]
    assert sorted(told.split(", ")) == sorted(named.split(", "))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--methods", ""), "No method is named"),
        (("--methods", " , "), "No method is named"),
        (("--methods", "lara"), "'lora'"),
        (("--task", "base"), "base"),
        (("--seed", "-1"), "seed=-1"),
        (("--set", "lora.max_tokens=9"), "same rows"),
        (("--tune", "5m"), "is a time"),
        (("--metric", "chrf"), "'chrf'"),
        (("--precision", "w8a8"), "w8a8"),
    ],
)
def test_refused_before_any_training(
    flags: tuple[str, ...], named: str, onebase: Run, base: str, desk: Path
) -> None:
    given = {"--task": "mood", "--data": "mood.jsonl", "--base": base}
    given |= dict(zip(flags[::2], flags[1::2], strict=True))
    result = onebase("compare", *(word for pair in given.items() for word in pair))
    assert result.code == 2, result.err
    assert named in result.err
    assert "Traceback" not in result.err
    assert not (desk / "ws" / "runs").exists()


def test_a_damaged_comparison_does_not_stop_recommend(
    onebase: Run, base: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommend_report, "_estimate", lambda *_: None)  # takes seconds
    compared(onebase, base, "--metric", "loss")
    file = run / FILE
    file.write_text(file.read_text(encoding="utf-8")[:-100], encoding="utf-8")
    result = onebase("recommend", "--task", "mood", "--json")
    assert result.code == 0, result.err
    assert f"{run.name}/{FILE} is damaged" in result.err
    (other,) = [folder.name for folder in run.parent.iterdir() if folder != run]
    assert other in result.json["runs"]
