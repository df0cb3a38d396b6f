"""`onebase align`: the commands end to end, what they print, and what they refuse."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.adapters.workspace import Workspace
from onebase.align.scoring import score_answers
from onebase.cli.display import RunDisplay
from onebase.model.base import Base
from onebase.runs.checkpointer import Checkpointer

Run = Callable[..., Any]
PAIRS = [
    {"prompt": f"Where is {i}?", "chosen": f"On its way, {i}.", "rejected": "No."}
    for i in range(12)
]
PPO = ("--task", "d", "--prompts", "prompts.jsonl")
SMALL = ("--set", "epochs=1", "--set", "batch_size=4", "--set", "max_tokens=96")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run(desk: Path, base: str, onebase: Run) -> Run:
    """Commands on the tiny base, beside files of every kind."""
    write("pairs.jsonl", PAIRS)
    write("prompts.jsonl", [{"prompt": row["prompt"], "id": i} for i, row in enumerate(PAIRS)])
    write(
        "judged.jsonl",
        [
            {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
            for row in PAIRS
            for key in ("chosen", "rejected")
        ],
    )
    Path("mine.py").write_text(
        "def length(prompt, answer, row):\n    return len(answer) + row['id'] * 0\n"
        "def broken(prompt, answer, row):\n    return row['missing']\n"
        "def talking(prompt, answer, row):\n    print('hello')\n    return len(answer)\n",
        encoding="utf-8",
    )

    def on_base(*arguments: str) -> Any:
        named = () if arguments[0] == "resume" else ("--base", base)
        return onebase(*arguments, *named)

    return on_base


def reward(run: Run) -> Any:
    return run("align", "reward", "--task", "quality", "--data", "pairs.jsonl", *SMALL, "--json")


def metrics_of(adapter: dict[str, Any]) -> dict[str, Any]:
    """The stored metrics of an adapter in a command's JSON."""
    record = Path(adapter["path"]) / "onebase.json"
    metrics: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))["metrics"]
    return metrics


def test_reward_then_score_then_ppo(run: Run, base: str, onebase: Run) -> None:
    trained = reward(run)
    assert trained.code == 0, trained.err
    (adapter,) = trained.json["adapters"]
    assert (adapter["task"], adapter["version"], adapter["method"]) == ("quality", 1, "lora")
    assert adapter["pair_accuracy"] == metrics_of(adapter)["pair_accuracy"]
    scored = run("align", "score", "--task", "quality", "--prompt", "Where?", "--answer", "No.")
    assert scored.code == 0
    texts = [("Where?", "No."), ("", "Yes.")]
    scores = score_answers("quality", texts, base=Base.load(base), workspace=Workspace("ws"))
    assert float(scored.out.split()[0]) == pytest.approx(scores[0], abs=1e-3)
    write("answers.jsonl", [{"input": "Where?", "output": "No."}, {"text": "Yes."}])
    listed = run("align", "score", "--task", "quality", "--file", "answers.jsonl", "--json").json
    assert [row["answer"] for row in listed["scores"]] == ["No.", "Yes."]
    assert [row["score"] for row in listed["scores"]] == pytest.approx(scores, abs=1e-5)
    learned = run(
        *("align", "ppo", "--task", "desk", "--prompts", "prompts.jsonl", "--reward", "quality"),
        *("--method", "p-tuning-v2", "--set", "steps=2", "--set", "prompts=3"),
        *("--set", "max_tokens=4", "--set", "virtual_tokens=4", "--json"),
    )
    assert learned.code == 0, learned.err
    (policy,) = learned.json["adapters"]
    assert policy["task"] == "desk"
    for name in ("reward", "reward_before", "kl", "distinct_2"):
        assert policy[name] == metrics_of(policy)[name]
    assert "step 2/2" in learned.err
    shown = onebase("runs", "show", learned.json["run"])
    assert shown.code == 0
    assert re.search(r"^  step +held-out reward .* KL ", shown.out, re.MULTILINE)
    assert re.search(r"^  2 +-?\d+\.\d{3} ", shown.out, re.MULTILINE)
    assert "curves.png" in shown.out
    listed = onebase("runs", "list")
    assert "quality (reward)" in listed.out
    assert "desk (ppo)" in listed.out
    prompt_answer = run("generate", "--task", "desk", "--prompt", "Where?", "--max-tokens", "3")
    assert prompt_answer.code == 0
    refused = run("generate", "--task", "quality", "--prompt", "Where?")
    assert refused.code == 2
    assert "reward model" in refused.err


@pytest.mark.parametrize(("kind", "data"), [("dpo", "pairs.jsonl"), ("kto", "judged.jsonl")])
def test_preferences(kind: str, data: str, run: Run) -> None:
    first = run("align", kind, "--task", "desk", "--data", data, "--method", "lora", *SMALL)
    assert first.code == 0, first.err
    assert "desk@1 (lora): held-out loss" in first.out
    second = run("align", kind, "--task", "desk", "--data", data, *SMALL, "--lang", "zh")
    assert second.code == 0, second.err
    assert "desk@2 (lora): 留出损失" in second.out


def test_a_reward_function_of_the_user(run: Run) -> None:
    flags = ("--prompts", "prompts.jsonl", "--method", "lora", "--advantage", "group")
    small = (
        "--set",
        "steps=1",
        "--set",
        "prompts=2",
        "--set",
        "samples=2",
        "--set",
        "max_tokens=3",
    )
    good = run("align", "ppo", "--task", "desk", *flags, *small, "--reward", "mine:length")
    assert good.code == 0, good.err
    talking = ("--reward", "mine:talking", "--json")
    printed = run("align", "ppo", "--task", "talk", *flags, *small, *talking)
    assert printed.json["adapters"][0]["task"] == "talk"
    assert "hello" in printed.err
    bad = run("align", "ppo", "--task", "desk", *flags, *small, "--reward", "mine:broken")
    assert bad.code == 1
    assert "prompts.jsonl:" in bad.err
    assert "KeyError" in bad.err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("dpo", "--task", "desk", "--data", "pairs.jsonl"), 2, "--method"),
        (("dpo", "--task", "desk", "--data", "judged.jsonl", "--method", "lora"), 3, "pairs"),
        (("dpo", "--task", "desk", "--data", "none.jsonl", "--method", "lora"), 3, "none.jsonl"),
        (("dpo", "--task", "base", "--data", "pairs.jsonl", "--method", "lora"), 2, "base"),
        (("dpo", "--task", "d", "--data", "pairs.jsonl", "--method", "lroa"), 2, "lora"),
        (
            ("dpo", "--task", "d", "--data", "pairs.jsonl", "--method", "lora", "--from", "d@1"),
            2,
            "--from",
        ),
        (
            ("dpo", "--task", "d", "--data", "pairs.jsonl", "--method", "lora", "--set", "betta=1"),
            2,
            "beta",
        ),
        (("kto", "--task", "d", "--data", "pairs.jsonl", "--method", "lora"), 3, "kto_tag"),
        (("score", "--task", "quality"), 2, "--answer"),
        (("score", "--task", "quality", "--answer", "x"), 2, "quality"),
        (
            ("ppo", *PPO, "--method", "lora", "--reward", "nowhere:f"),
            2,
            "nowhere",
        ),
        (("ppo", *PPO, "--method", "full", "--reward", "mine:length"), 2, "full"),
        *(
            ((*command, "--seed", seed), 2, f"seed={seed}")
            for command, seed in (
                (("dpo", "--task", "d", "--data", "pairs.jsonl", "--method", "lora"), "-1"),
                (("kto", "--task", "d", "--data", "judged.jsonl"), str(10**23)),
                (("reward", "--task", "d", "--data", "pairs.jsonl"), str(1 << 63)),
                (("ppo", *PPO, "--method", "lora", "--reward", "mine:length"), "-1"),
            )
        ),
    ],
)
def test_wrong_usage(
    arguments: tuple[str, ...], code: int, text: str, run: Run, tmp_path: Path
) -> None:
    refused = run("align", *arguments)
    assert refused.code == code, refused.err
    assert text in refused.err
    assert not (tmp_path / "ws" / "adapters").exists()


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_a_task_is_aligned_and_scored_on_its_own_base(
    precision: str, run: Run, onebase: Run
) -> None:
    """With neither base nor precision named again."""
    rank = ("--set", "rank=2", "--set", "target=attention", *SMALL)
    judge = ("align", "reward", "--task", "quality", "--data", "pairs.jsonl", *rank)
    assert run(*judge, "--precision", precision).code == 0
    answer = ("align", "score", "--task", "quality", "--answer", "No.", "--json")
    scored = onebase(*answer)
    assert f"Loaded in {precision}" in scored.err
    assert scored.json == run(*answer, "--precision", precision).json
    plainly = run(*answer, "--precision", "fp32")
    assert plainly.json != scored.json
    assert f"quality@1 was trained with its base in {precision}" in plainly.err
    data = ("--data", "pairs.jsonl", *SMALL)
    fresh = ("--method", "lora", "--precision", precision, "--set", "rank=2")
    assert run("align", "dpo", "--task", "desk", *data, *fresh).code == 0
    again = onebase("align", "dpo", "--task", "desk", *data, "--json")
    assert again.code == 0, again.err
    assert f"Loaded in {precision}" in again.err
    (adapter,) = again.json["adapters"]
    record = json.loads((Path(adapter["path"]) / "onebase.json").read_text(encoding="utf-8"))
    assert record["precision"].partition(":")[0] == precision


def test_ctrl_c_and_resume(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Checkpointer, "due", lambda *_, **__: True)
    flags = ("align", "dpo", "--task", "desk", "--data", "pairs.jsonl", "--method", "lora", *SMALL)
    real = RunDisplay.step

    def pressed(display: RunDisplay, task: str, step: int, record: Any) -> None:
        real(display, task, step, record)
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunDisplay, "step", pressed)
    stopped = run(*flags)
    assert stopped.code == 130
    assert "onebase resume" in stopped.err
    monkeypatch.setattr(RunDisplay, "step", real)
    (folder,) = (tmp_path / "ws" / "runs").iterdir()
    resumed = run("resume", folder.name, "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["run"] == folder.name
