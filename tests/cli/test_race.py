"""`onebase race`, as it is typed."""

import json
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
METRICS = {
    *("trainable", "eval_loss", "base_eval_loss", "best_step", "steps", "diverged"),
    *("truncated", "seconds", "tokens_per_second", "race", "learned"),
}
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
    saved = json.loads(next(Path("ws/runs").glob("*/ladder.json")).read_text(encoding="utf-8"))
    ladder = saved["ladder"]
    texts = {
        row["number"]: " ".join([row["method"], *(f"{k}={v}" for k, v in row["settings"].items())])
        for row in ladder
    }
    for rung, share, staying in ((1, "1/12", 3), (2, "1/4", 2), (3, "1/2", 1)):
        assert len(losses_at(ladder, rung)) == (6, 3, 2)[rung - 1]
        best = min(losses_at(ladder, rung), key=lambda loss_and_number: loss_and_number[0])
        (said,) = re.findall(rf"At {share}: {staying} of 6 continue; best: (.*)", result.err)
        assert said == f"{best[1]} {texts[best[1]]}, held-out loss {best[0]:.3f}"
    titles, *rows = table(result.out)
    assert titles == [
        *("rank", "#", "configuration", "1/12", "1/4", "1/2", "end", "stopped at", "tokens")
    ]
    assert [row[:2] for row in rows] == [[str(row["rank"]), str(row["number"])] for row in ladder]
    for row, expected in zip(rows, ladder, strict=True):
        own = [item for item in expected["losses"] if item["rung"]]
        losses = [f"{item['loss']:.3f}" for item in own]
        assert row[3:6] == losses + [""] * (3 - len(losses))
        left = expected["left"]
        assert row[7].split(",")[0] == (("1/12", "1/4", "1/2")[left["rung"] - 1] if left else "")
        assert row[8] == f"{expected['tokens']:,}"
    assert [row[2] for row in rows] == [texts[row["number"]] for row in ladder]
    assert f"Winner: {rows[0][2]}\n" in result.out
    assert "support@1 (" in result.out
    (plot,) = re.findall(r"Plot of the leaderboard: (.*)", result.out)
    assert Path(plot).is_file()
    answer = onebase(
        "generate", "--task", "support", "--prompt", "Hi", "--base", asked[6], "--json"
    )
    assert answer.json["answers"][0]["version"] == 1


def losses_at(ladder: list[dict[str, Any]], rung: int) -> list[tuple[float, int]]:
    """Loss and number of each configuration that was judged at a rung."""
    return [
        (item["loss"], row["number"])
        for row in ladder
        for item in row["losses"]
        if item["rung"] == rung
    ]


def table(text: str) -> list[list[str]]:
    """The cells of the one table in an output."""
    lines = [line for line in text.splitlines() if line[:1] in "│┃"]
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]


def test_on_a_terminal_the_leaderboard_is_live(
    asked: list[str], onebase: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    result = onebase(*asked, "--configs", "3", "--epochs", "2")
    assert result.code == 0, result.err
    assert "stopped at" in result.err
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.err)
    assert re.search(r"│ 1 +│ \d │ ", shown)
    assert "At 1/12:" not in result.err
    assert "stopped at" in result.out


def test_as_json(asked: list[str], onebase: Run) -> None:
    result = onebase(*asked, "--configs", "6", "--epochs", "2", "--json")
    assert result.code == 0, result.err
    found = result.json
    assert set(found) == {
        *("run", "task", "end", "winner", "adapter", "ladder", "plot"),
        *("configurations", "epochs", "tokens", "judged_tokens", "seconds", "budget_used"),
    }
    assert (found["task"], found["end"]) == ("support", "finished")
    assert (found["configurations"], found["epochs"]) == (6, 2)
    ladder = found["ladder"]
    assert [row["rank"] for row in ladder] == [1, 2, 3, 4, 5, 6]
    assert sorted(row["number"] for row in ladder) == [1, 2, 3, 4, 5, 6]
    winner = {key: ladder[0][key] for key in ("number", "method", "settings")}
    assert found["winner"] == {**winner, "eval_loss": found["adapter"]["eval_loss"]}
    adapter = found["adapter"]
    record = json.loads((Path(adapter["path"]) / "onebase.json").read_text(encoding="utf-8"))
    assert adapter == {
        "task": "support",
        "version": 1,
        "method": winner["method"],
        "path": "ws/adapters/support/1",
        **record["metrics"],
    }
    assert set(record["metrics"]) == METRICS
    last = [item["loss"] for item in ladder[0]["losses"] if item["rung"] is None]
    assert adapter["eval_loss"] == min(last) < adapter["base_eval_loss"]
    assert sum(row["tokens"] for row in ladder) == found["tokens"]
    with Image.open(found["plot"]) as picture:
        picture.verify()


def test_in_chinese(asked: list[str], onebase: Run) -> None:
    result = onebase(*asked, "--configs", "2", "--epochs", "1", "--lang", "zh")
    assert result.code == 0, result.err
    assert "2 个配置竞赛" in result.err
    assert "优胜：" in result.out


def test_the_budget_determines_the_configurations(asked: list[str], onebase: Run) -> None:
    result = onebase(*asked, "--budget", "20k", "--json")
    assert result.code == 0, result.err
    found = result.json
    assert found["configurations"] == 24
    assert 10_000 < found["tokens"] <= 20_000
    timed = onebase(*asked, "--budget", "2s", "--configs", "3", "--json")
    assert timed.code == 0, timed.err
    assert timed.json["configurations"] == 3
    assert timed.json["seconds"] < 4


def test_what_a_budget_leaves_is_spent_and_said(asked: list[str], onebase: Run) -> None:
    """Two configurations are trained to their ends, and the better one again for longer."""
    flags = ("--configs", "2", "--methods", "ia3", "--budget", "30k")
    result = onebase(*asked, *flags)
    assert result.code == 0, result.err
    (again,) = re.findall(r"nothing to continue: (\d) \((.*)\) is trained again, over", result.err)
    assert re.search(r"^3 \(ia3 .*epochs=\d+\) (ends at|does not end better)", result.err, re.M)
    _, *rows = table(result.out)
    assert len(rows) == 3
    assert any(row[:3][1] == "3" and row[2].startswith(f"{again[1]} epochs=") for row in rows)
    (used,) = re.findall(r" This is (\d+)% of the budget\.\n", result.out)
    assert 85 <= int(used) <= 100


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
    flags = set(re.findall(r"(?<![\w-])--[a-z-]+", result.out))
    assert flags == {
        *("--task", "--data", "--budget", "--configs", "--epochs", "--methods", "--space"),
        *("--base", "--precision", "--instruction", "--held-out", "--template"),
        *("--columns", "--column", "--encoding", "--set", "--seed", "--skip-bad"),
        *("--workspace", "--json", "--lang", "--help"),
    }
