"""`onebase recommend`: options, the workspace's comparisons, the JSON, both languages."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run
from tests.compare.comparison_builder import compared

from onebase.compare.recommend.preferences import GOALS, SCENARIOS
from onebase.compare.record import save
from onebase.compare.result import Comparison
from onebase.planning import plan as planning
from onebase.planning.dry_run import dry_run
from onebase.planning.dry_run_process import request_for

ACCURACY = {"base": 0.3, "base+examples": 0.5, "lora": 0.9, "ia3": 0.89, "prompt-tuning": 0.7}
KEYS = {"decision", "method", "settings", "reasons", "runs", "next", "tied", "excluded"}


def kept(comparison: Comparison, workspace: Path) -> None:
    """Save a comparison where its run would have."""
    folder = workspace / "runs" / comparison.run
    folder.mkdir(parents=True)
    save(comparison, folder)


@pytest.fixture
def measured(desk: Path, base: str) -> Path:
    """A workspace with one comparison: lora and ia3 tie, ia3 takes less of everything."""
    kept(compared(ACCURACY, base=base), desk / "ws")
    return desk / "ws"


@pytest.fixture
def _plan_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial of plan in this process: quicker, and the errors are the same."""

    def run_dry_run(jobs: Any, *, base: str, precision: str | None, limit: int) -> dict[str, Any]:
        return {"seconds": 20.0, **dry_run(request_for(jobs, base=base, precision=precision))}

    monkeypatch.setattr(planning, "run_dry_run", run_dry_run)


@pytest.mark.usefixtures("measured")
def test_json(onebase: Run, base: str) -> None:
    result = onebase("recommend", "--json")
    assert result.code == 0, result.err
    assert result.err == ""
    made = result.json
    assert made.keys() == KEYS
    assert (made["decision"], made["method"], made["settings"]) == ("method", "ia3", {"epochs": 5})
    assert made["tied"] == ["lora", "ia3"]
    assert made["runs"] == ["20261128-100000-0001"]
    assert made["excluded"].keys() == {"lora", "prompt-tuning"}
    assert made["next"].startswith("onebase train --task mood --data mood.jsonl --method ia3 ")
    assert "lora, ia3 cannot be told apart on 140 rows." in made["reasons"]


@pytest.mark.usefixtures("measured")
def test_for_a_person(onebase: Run) -> None:
    result = onebase("recommend", "--goal", "size")
    assert result.code == 0, result.err
    first, *reasons, last = result.out.splitlines()
    assert first == "Recommended: ia3 (epochs=5)"
    assert all(line.startswith("- ") for line in reasons)
    assert "- ia3 has the smallest adapter: ia3 120 kB, lora 3.40 MB." in reasons
    assert last.startswith("Next: onebase train --task mood ")
    chinese = onebase("recommend", "--goal", "size", "--lang", "zh")
    first, *reasons, last = chinese.out.splitlines()
    assert first == "推荐：ia3（epochs=5）"
    assert all(re.search("[一-鿿]", line) for line in reasons)
    assert last.startswith("下一步：onebase train --task mood ")


@pytest.mark.usefixtures("measured")
def test_the_command_that_is_printed_trains(onebase: Run) -> None:
    command = onebase("recommend", "--json").json["next"]
    result = onebase(*shlex.split(command)[1:], "--set", "batch_size=4", "--json")
    assert result.code == 0, result.err
    assert result.json["adapters"][0]["method"] == "ia3"


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("flags", "method"),
    [
        (["--task", "mood"], "ia3"),
        (["--scenario", "best-quality"], "lora"),
        (["--memory", "900MB"], "prompt-tuning"),
        (["--memory", "4GB", "--time", "5m"], "ia3"),
        (["--time", "1m"], "prompt-tuning"),
        (["--time", "90s", "--goal", "speed"], "prompt-tuning"),
        (["--adapter-size", "100KB"], "prompt-tuning"),
        (["--memory", "1.5GB", "--adapter-size", "3MB", "--time", "1h"], "ia3"),
        *((["--goal", name], "ia3") for name in GOALS),
        *((["--scenario", name], None) for name in SCENARIOS),
    ],
)
def test_options_decide(flags: list[str], method: str | None, onebase: Run) -> None:
    made = onebase("recommend", *flags, "--json").json
    assert made["decision"] == "method"
    assert method in (None, made["method"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--memory", "lots"], ["--memory 'lots' is not a size.", "500MB or 1.5GB"]),
        (["--memory", "0GB"], ["A limit of 0 on the peak memory."]),
        (["--memory", "-4GB"], ["--memory '-4GB' is not a size."]),
        (["--adapter-size", "3 bits"], ["--adapter-size '3 bits' is not a size."]),
        (["--time", "soon"], ["--time 'soon' is not a time.", "90s, 5m or 1h"]),
        (["--time", "200k"], ["--time '200k' is not a time."]),
        (["--time", "0s"], ["--time '0s' is not a time."]),
        (["--goal", "sped"], ["Unknown goal: 'sped'.", "Did you mean 'speed'?"]),
        (["--scenario", "prod"], ["Unknown scenario: 'prod'.", "Valid: balance, best-quality"]),
        (["--goal", "size", "--scenario", "balance"], ["Both --goal and --scenario were given."]),
    ],
)
def test_what_is_wrong_is_named(flags: list[str], words: list[str], onebase: Run) -> None:
    result = onebase("recommend", *flags)
    assert result.code == 2
    for text in words:
        assert text in result.err
    chinese = onebase("recommend", *flags, "--lang", "zh")
    assert chinese.code == 2
    assert re.search("[一-鿿]", chinese.err)


def test_nothing_was_measured(onebase: Run, desk: Path) -> None:
    made = onebase("recommend", "--json").json
    assert (made["decision"], made["method"], made["runs"]) == ("declined", None, [])
    assert made["next"] == "onebase compare --task TASK --data FILE"
    assert not (desk / "ws").exists()
    result = onebase("recommend", "--task", "mood", "--lang", "zh")
    assert result.code == 0
    assert result.out.startswith("无法给出推荐。\n- 此工作区中还没有对比")


@pytest.mark.usefixtures("trained", "_plan_here")
def test_the_cost_for_a_task_that_was_trained_but_not_compared(onebase: Run, base: str) -> None:
    result = onebase("recommend", "--task", "mood", "--json")
    assert result.code == 0, result.err
    made = result.json
    assert made["decision"] == "declined"
    command = shlex.split(made["next"])
    assert command[:4] == ["onebase", "compare", "--task", "mood"]
    assert Path(command[command.index("--data") + 1]).name == "mood.jsonl"
    assert command[command.index("--base") + 1] == base
    (estimate,) = [text for text in made["reasons"] if "By the estimate of onebase plan" in text]
    assert "one training of full, lora, ia3, prompt-tuning, p-tuning, p-tuning-v2" in estimate
    assert "Estimating what the comparison takes" in result.err


@pytest.mark.usefixtures("_plan_here")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (None, "nowhere.jsonl"),
        (
            "smollm2-135m",
            "smollm2-135m is not on this machine yet. Fetch it with onebase model pull",
        ),
    ],
)
def test_no_estimate(name: str | None, reason: str, onebase: Run, base: str) -> None:
    """Where the data can't be read, or the base would have to be fetched."""
    flags = ("--task", "news", "--data", "nowhere.jsonl", "--base", name or base)
    result = onebase("recommend", *flags, "--json")
    assert result.code == 0
    assert "No estimate: " in result.err
    assert reason in result.err
    assert result.json["next"] == (
        f"onebase compare --task news --data nowhere.jsonl --base {name or base}"
    )


def test_tasks_and_bases_are_told_apart(onebase: Run, measured: Path) -> None:
    kept(compared(ACCURACY, task="news", run="20261128-110000-0002", base="b"), measured)
    made = onebase("recommend", "--json").json
    assert "2 tasks were compared here: mood, news." in made["reasons"][0]
    assert onebase(*shlex.split(made["next"])[1:], "--json").json["method"] == "ia3"
    other = onebase("recommend", "--base", "b", "--json").json
    assert other["runs"] == ["20261128-110000-0002"]


def test_a_damaged_comparison_is_named(onebase: Run, measured: Path) -> None:
    (file,) = measured.glob("runs/*/comparison.json")
    file.write_text(file.read_text(encoding="utf-8")[:-40], encoding="utf-8")
    result = onebase("recommend")
    assert result.code == 0, result.err
    assert "comparison.json is damaged" in result.err
    assert result.out.startswith("No recommendation.")


def test_help(onebase: Run) -> None:
    text = re.sub(r"\s", "", onebase("recommend", "--help").out)
    for name in (*GOALS, *SCENARIOS, "--memory", "--time", "--adapter-size", "--base", "--data"):
        assert name in text
