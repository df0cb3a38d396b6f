"""`onebase race`, as it is typed."""

import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.cli.conftest import Run, write_rows

from onebase.runs.recorder import RunRecorder

ROWS = [
    {"question": f"Where is parcel {number}?", "answer": f"Parcel {number} arrives on Monday."}
    for number in range(30)
]
FLAGS = ("--set", "batch_size=4", "--set", "held_out=0.2")


@pytest.fixture
def asked(desk: Path, base: str) -> list[str]:
    write_rows(desk / "rows.jsonl", ROWS)
    data = ["--task", "support", "--data", "rows.jsonl", "--base", base]
    return ["race", *data, *FLAGS]


def test_the_leaderboard_is_printed(asked: list[str], onebase: Run) -> None:
    result = onebase(*asked, "--configs", "6", "--epochs", "2")
    assert result.code == 0, result.err
    assert "Racing 6 configurations (lora, p-tuning-v2, prompt-tuning, p-tuning, ia3)" in result.err
    assert (
        "over 2 epochs; they are reduced to 3 at 1/12, 2 at 1/4, 1 at 1/2 of the way." in result.err
    )
    for share, staying in (("1/12", 3), ("1/4", 2), ("1/2", 1)):
        assert f"At {share}: {staying} of 6 continue; best: " in result.err
    for title in ("rank", "configuration", "1/12", "1/4", "1/2", "end", "stopped at", "tokens"):
        assert title in result.out
    assert "Winner: " in result.out
    assert "support@1 (" in result.out
    assert "ladder.png" in result.out
    answer = onebase(
        "generate", "--task", "support", "--prompt", "Hi", "--base", asked[6], "--json"
    )
    assert answer.json["answers"][0]["version"] == 1


def test_on_a_terminal_the_leaderboard_is_live(
    asked: list[str], onebase: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    result = onebase(*asked, "--configs", "3", "--epochs", "2")
    assert result.code == 0, result.err
    assert "stopped at" in result.err
    assert "tok" in result.err
    assert "At 1/12:" not in result.err
    assert "stopped at" in result.out


def test_as_json(asked: list[str], onebase: Run) -> None:
    result = onebase(*asked, "--configs", "6", "--epochs", "2", "--json")
    assert result.code == 0, result.err
    race = result.json
    assert {"run", "task", "winner", "adapter", "ladder", "plot", "tokens", "seconds"} <= set(race)
    assert (race["task"], race["end"]) == ("support", "finished")
    ladder = race["ladder"]
    assert [row["rank"] for row in ladder] == [1, 2, 3, 4, 5, 6]
    assert sorted(row["number"] for row in ladder) == [1, 2, 3, 4, 5, 6]
    winner = {key: ladder[0][key] for key in ("number", "method", "settings")}
    assert race["winner"] == {**winner, "eval_loss": race["adapter"]["eval_loss"]}
    adapter = race["adapter"]
    assert {"task", "version", "method", "path", "trainable"} <= set(adapter)
    assert {"eval_loss", "base_eval_loss", "seconds", "tokens_per_second"} <= set(adapter)
    assert adapter["eval_loss"] < adapter["base_eval_loss"]
    assert sum(row["tokens"] for row in ladder) == race["tokens"]
    with Image.open(race["plot"]) as picture:
        picture.verify()


def test_in_chinese(asked: list[str], onebase: Run) -> None:
    result = onebase(*asked, "--configs", "2", "--epochs", "1", "--lang", "zh")
    assert result.code == 0, result.err
    assert "2 个配置竞赛" in result.err
    assert "优胜：" in result.out


def test_the_budget_determines_the_configurations(asked: list[str], onebase: Run) -> None:
    result = onebase(*asked, "--budget", "20k", "--json")
    assert result.code == 0, result.err
    race = result.json
    assert race["configurations"] == 24
    assert race["tokens"] <= 20_000
    timed = onebase(*asked, "--budget", "2s", "--configs", "3", "--json")
    assert timed.code == 0, timed.err
    assert timed.json["configurations"] == 3
    assert timed.json["seconds"] < 4


def test_methods_and_spaces(asked: list[str], desk: Path, onebase: Run) -> None:
    race = onebase(
        *asked, "--configs", "3", "--epochs", "1", "--methods", "ia3, prefix-tuning", "--json"
    ).json
    assert {row["method"] for row in race["ladder"]} == {"ia3", "p-tuning-v2"}
    (desk / "space.yaml").write_text("lora: {rank: [1, 2]}\nia3:\n", encoding="utf-8")
    race = onebase(*asked, "--epochs", "1", "--space", "space.yaml", "--json").json
    settings = sorted((row["method"], str(row["settings"])) for row in race["ladder"])
    assert settings == [("ia3", "{}"), ("lora", "{'rank': 1}"), ("lora", "{'rank': 2}")]


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--budget", "soon"], 2, "'soon' is not a budget"),
        (["--configs", "1"], 2, "A race of 1"),
        (["--configs", "500"], 2, "configurations, not 500"),
        (["--methods", "lara"], 2, "Did you mean 'lora'?"),
        (["--methods", "lora", "--space", "space.yaml"], 2, "Both --methods and --space"),
        (["--space", "space.yaml"], 2, "space.yaml can't be read"),
        (["--set", "held_out=0"], 2, "needs held-out rows"),
        (["--set", "rank=4"], 2, "'rank'"),
        (["--epochs", "0"], 2, "epochs=0 is not valid"),
        (["--data", "none.jsonl"], 3, "none.jsonl"),
        (["--task", ""], 2, "--task and --data are required"),
    ],
)
def test_wrong_usage(
    flags: list[str], code: int, named: str, asked: list[str], desk: Path, onebase: Run
) -> None:
    # The flags replace those of the default command: an option or setting given twice is refused.
    option, value = flags[:2]
    setting = value.partition("=")[0] if option == "--set" else ""
    for index in range(len(asked) - 2, 0, -1):
        if asked[index] == option and asked[index + 1].startswith(setting):
            del asked[index : index + 2]
            break
    result = onebase(*asked, *flags)
    assert result.code == code
    assert named in result.err
    assert "Remedy: " in result.err
    assert "Traceback" not in result.err
    assert not (desk / "ws").exists()


@pytest.fixture
def _pressed_in_the_tenth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    real = RunRecorder.step
    steps = iter(range(1, 10_000))

    def step(self: RunRecorder, task: str, number: int, record: Mapping[str, Any]) -> None:
        real(self, task, number, record)
        if next(steps) == 10:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunRecorder, "step", step)


@pytest.mark.usefixtures("_pressed_in_the_tenth_step")
def test_ctrl_c_stores_the_best_so_far(asked: list[str], onebase: Run) -> None:
    result = onebase(*asked, "--configs", "3", "--epochs", "4", "--json")
    assert result.code == 130
    race = result.json
    assert race["end"] == "interrupted"
    assert race["adapter"]["version"] == 1
    assert "the best so far is stored as support@1" in result.err
    (row,) = onebase("runs", "list", "--json").json["runs"]
    assert row["run"] == race["run"]
    assert (row["status"], row["resumable"], row["race"]) == ("interrupted", False, 3)
    assert row["tasks"] == ["support"]
    listed = onebase("runs", "list")
    assert "race of 3" in listed.out
    assert "onebase resume" not in listed.err
    shown = onebase("runs", "show", race["run"])
    assert shown.code == 0, shown.err
    assert re.search(r"^  \d +2 +p-tuning-v2 ", shown.out, re.MULTILINE)
    (Path("ws/runs") / race["run"] / "ladder.json").unlink()  # as before the race has ended
    shown = onebase("runs", "show", race["run"])
    assert re.search(r"^ +2 +p-tuning-v2 .*\d$", shown.out, re.MULTILINE)
    resumed = onebase("resume", race["run"])
    assert resumed.code == 2
    assert "is a race, and a race can't be resumed" in resumed.err
    assert "onebase race" in resumed.err


def test_the_same_command_starts_a_new_race(asked: list[str], onebase: Run) -> None:
    first = onebase(*asked, "--configs", "2", "--epochs", "1", "--json").json
    again = onebase(*asked, "--configs", "2", "--epochs", "1", "--json").json
    assert again["run"] != first["run"]
    assert again["adapter"]["version"] == 2
    assert again["ladder"] == first["ladder"]


def test_help(onebase: Run) -> None:
    result = onebase("race", "--help")
    assert result.code == 0
    for flag in ("--budget", "--configs", "--epochs", "--methods", "--space", "--seed"):
        assert flag in result.out
