"""The text output of doctor, data check, runs show, adapters show and the lists."""

import json
import re
from pathlib import Path

import psutil
import pytest

from onebase.cli.units import aligned, loss_change, moment, options_text, settings_text, wrapped
from onebase.quantity import size

RAW = re.compile(r"_bytes|\b[a-z]+_[a-z_]+: |\b\d{7,}\b(?!-)|\bTrue\b|\bFalse\b|\bNone\b|\{'|\['")


def test_moments() -> None:
    assert moment("2026-11-28T07:13:01+02:00") == "2026-11-28 05:13 UTC"
    assert moment("yesterday") == "yesterday"


def test_changes_of_a_loss() -> None:
    assert loss_change(2.0, 1.0) == "2.000 -> 1.000 (50 % lower)"
    assert loss_change(2.0, 3.0) == "2.000 -> 3.000 (50 % higher)"
    assert loss_change(2.0, 2.001) == "2.000 -> 2.001 (the same)"
    assert loss_change(0.0, 1.0) == "0.000 -> 1.000"
    assert loss_change(1.0, float("nan")) == "1.000 -> nan"


def test_a_table_is_aligned_for_wide_characters() -> None:
    assert aligned([["数据", "a"], ["b", "c"]]) == ["  数据  a", "  b     c"]
    assert settings_text({"rank": 8, "alpha": 16.0, "use_dora": True, "init_text": None}) == (
        "rank=8, alpha=16, use_dora=true"
    )
    composite = {"lora": {"rank": 8}, "p-tuning": {"hidden": 64}}
    assert options_text(composite) == "lora: rank=8; p-tuning: hidden=64"
    patterned = {"rank": 8, "rank_pattern": {"q_proj": 4}}
    assert options_text(patterned) == "rank=8, rank_pattern={q_proj: 4}"
    lines = wrapped("settings", ", ".join(["epochs=3"] * 20))
    assert [name for name, _ in lines] == ["settings", "", ""]
    assert all(len(text) <= 88 for _, text in lines)
    assert wrapped("settings", "") == []


@pytest.mark.usefixtures("trained")
def test_doctor_prints_sentences(onebase) -> None:
    lines = onebase("doctor").out.splitlines()
    total = size(psutil.virtual_memory().total)
    assert any(re.fullmatch(rf"Memory: {total}, .* free\.", line) for line in lines)
    assert "Tasks (in the workspace ws): mood, support." in lines
    assert lines[-1] == (
        "Missing: the default base smollm2-135m. Fetch it with: onebase model pull smollm2-135m"
    )
    assert not RAW.search("\n".join(lines))
    chinese = onebase("doctor", "--lang", "zh").out
    assert f"内存：{total}，可用 " in chinese
    assert "任务（位于工作区 ws）：mood、support。" in chinese


def test_doctor_suggests_a_command_if_nothing_is_missing(
    onebase, base: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = desk / "cache" / "models"
    models.mkdir(parents=True)
    (models / "smollm2-135m").symlink_to(base, target_is_directory=True)
    monkeypatch.setenv("ONEBASE_CACHE", str(desk / "cache"))
    lines = onebase("doctor").out.splitlines()
    assert "Tasks (in the workspace ws): none yet." in lines
    assert lines[-1] == "Nothing is missing. Next: onebase demo, or onebase data check FILE."


@pytest.fixture
def imperfect(desk: Path) -> str:
    """A file with a bad row, a duplicate, a contradiction, a long row, and a column that is not read."""
    rows = [{"input": f"q{n}", "output": "a", "id": n} for n in range(12)]
    rows += [{"input": "q0", "output": "a"}, {"input": "q1", "output": "b"}]
    rows += [{"input": "q", "output": ""}, {"input": "long " * 200, "output": "a"}]
    (desk / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return "rows.jsonl"


def test_data_check_prints_sentences(onebase, base: str, imperfect: str) -> None:
    check = ("data", "check", imperfect, "--base", base, "--max-tokens", "64")
    lines = onebase(*check).out.splitlines()
    assert lines[0] == "rows.jsonl: 16 rows with answers to learn, format input-output."
    for line in (
        "  id: not read",
        "1 bad row that can't be used for training:",
        "  rows.jsonl:15, column 'output': empty",
        "2 duplicates:",
        "  lines 1 and 13: the same input and the same answer",
        "  lines 2 and 14: the same input, but different answers",
        "  1 example is too long and truncated (--max-tokens).",
    ):
        assert line in lines
    assert "abels" not in "".join(lines)  # it has none
    assert lines[-1] == (
        "Next: correct the bad rows, or leave them out: onebase train --task T --data rows.jsonl "
        "--method lora --skip-bad"
    )
    assert not RAW.search("\n".join(lines))
    chinese = onebase(*check, "--lang", "zh").out
    assert "  第 2 与 14 行：输入相同，回答不同" in chinese
    assert "2 处重复：" in chinese


def test_data_check_of_labels_and_of_an_overlap(onebase, base: str) -> None:
    check = ("data", "check", "mood.jsonl", "--base", base, "--held-out", "mood.jsonl")
    out = onebase(*check).out
    assert "Labels and their rows: good (4), bad (4), neutral (4)." in out
    assert "No bad rows.\nNo duplicates.\n12 rows whose input is also in the held-out file" in out
    assert "  line 1: line 1 of the held-out file" in out
    assert "  … and 2 more" in out
    assert out.endswith("Next: onebase train --task T --data mood.jsonl --method lora\n")


def test_data_check_of_preferences(onebase, base: str, desk: Path) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": "yes yes", "rejected": "no"} for n in range(8)]
    pairs.append({"prompt": "q0", "chosen": "no", "rejected": "yes yes"})
    (desk / "p.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    out = onebase("data", "check", "p.jsonl", "--base", base).out
    assert out.startswith(
        "p.jsonl: 9 rows with pairs of answers, format preference-prompt; used by "
    )
    assert "The chosen answer is the longer one in 89% of the pairs." in out
    assert "  lines 1 and 9: the same answers, judged differently" in out
    assert out.endswith("Next: onebase align dpo --task T --data p.jsonl --method lora\n")
    rated = [{"prompt": f"q{n}", "completion": "a", "rating": n} for n in range(9)]
    (desk / "r.jsonl").write_text("\n".join(map(json.dumps, rated)), encoding="utf-8")
    out = onebase("data", "check", "r.jsonl", "--base", base).out
    assert "Ratings: 0 to 8, mean 4, 9 different values." in out
    assert out.endswith("Next: onebase align reward --task T --data r.jsonl\n")


@pytest.mark.usefixtures("desk")
def test_a_file_with_only_bad_rows_has_to_be_corrected(onebase, base: str, desk: Path) -> None:
    (desk / "b.jsonl").write_text('{"input": "q", "output": ""}\n', encoding="utf-8")
    out = onebase("data", "check", "b.jsonl", "--base", base).out
    assert out.endswith("Next: correct the bad rows.\n")
    assert "First example" not in out


@pytest.mark.usefixtures("trained")
def test_runs_show_has_the_settings_and_the_losses(onebase) -> None:
    run = onebase("runs", "list", "--json").json["runs"][0]["run"]
    shown = onebase("runs", "show", run, "--json").json
    out = onebase("runs", "show", run).out
    assert re.match(rf"Run {run}: finished after [\d.]+ m?s \(", out)
    assert re.search(r"^  instruction +Be kind\.$", out, re.MULTILINE)
    assert re.search(r"^  settings +epochs=1, batch_size=8, ", out, re.MULTILINE)
    assert re.search(r"^  method's options +rank=8, alpha=16, ", out, re.MULTILINE)
    assert re.search(r"^  step +epoch +training loss +held-out loss$", out, re.MULTILINE)
    for task in ("support", "mood"):
        records = [item for item in shown["metrics"] if item.get("task") == task]
        before = next(item["base_eval_loss"] for item in records if "base_eval_loss" in item)
        (evaluated,) = [item for item in records if "eval_loss" in item]
        steps = [item["loss"] for item in records if "loss" in item]
        losses = rf"{sum(steps) / len(steps):.3f} +{evaluated['eval_loss']:.3f} +best"
        assert re.search(rf"^  0 +{before:.3f} +without the adapter$", out, re.MULTILINE)
        assert re.search(rf"^  {evaluated['step']} +1 +{losses}$", out, re.MULTILINE)
        use = {"support": "generate --task {} --prompt …", "mood": "classify --task {} --text …"}
        suggestion = f"Stored as {task}@1. Try: onebase {use[task].format(f'{task}@1')}"
        assert suggestion in out.splitlines()
    assert not RAW.search(out.replace(str(shown["config"]["base"]), ""))
    assert "不使用适配器" in onebase("runs", "show", run, "--lang", "zh").out


@pytest.mark.usefixtures("trained")
def test_runs_show_of_an_interrupted_run(onebase, trained: Path) -> None:
    run = onebase("runs", "list", "--json").json["runs"][1]["run"]
    folder = trained / "runs" / run
    (folder / "summary.json").unlink()
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    note = json.dumps({"task": "support", "note": "Not read: 'id'."}) + "\n"
    (folder / "metrics.jsonl").write_text("".join([*lines[:2], note]), encoding="utf-8")
    out = onebase("runs", "show", run).out
    assert out.startswith(f"Run {run}: interrupted\n")
    loss = json.loads(lines[1])["loss"]
    assert re.search(rf"^  1 +\d\S* +{loss:.3f}$", out, re.MULTILINE)
    assert "Notes:\n  Not read: 'id'.\n" in out
    assert out.endswith(f"\nContinue it: onebase resume {run}\n")


@pytest.mark.usefixtures("trained")
def test_adapters_show_describes_a_version(onebase, base: str) -> None:
    old = onebase("adapters", "show", "support@1")
    lines = old.out.splitlines()
    assert lines[0] == "support@1 (lora): not the current version"
    record = onebase("adapters", "show", "support@1", "--json").json
    metrics = record["metrics"]
    before, loss = metrics["base_eval_loss"], metrics["eval_loss"]
    rows = {line[:15].strip(): line[15:].strip() for line in lines if line.startswith("  ")}
    assert rows["base"] == f"{base} in fp32"
    assert rows["instruction"] == "Be kind."
    assert rows["trained by"] == "onebase train"
    assert rows["held-out loss"].startswith(f"{before:.3f} -> {loss:.3f} (")
    assert rows["parameters"] == f"{metrics['trainable']:,}"
    assert rows["files"] == f"{size(record['bytes'])} in {record['path']}"
    assert lines[-2:] == [
        "Try: onebase generate --task support@1 --prompt …",
        "Make it the current version: onebase adapters promote support@1",
    ]
    now = onebase("adapters", "show", "mood", "--lang", "zh").out
    assert now.startswith("mood@1（prompt-tuning）：当前版本\n")
    assert re.search(r"^  标签 +bad、good、neutral$", now, re.MULTILINE)
    assert now.endswith("试试：onebase classify --task mood --text …\n")


def test_options_of_single_layers_are_shown(onebase, base: str) -> None:
    job = ("--task", "t", "--data", "support.jsonl", "--base", base, "--set", "epochs=1")
    run = onebase("train", *job, "--set", "rank_pattern={q_proj: 4}", "--json").json["run"]
    for command in (("runs", "show", run), ("adapters", "show", "t")):
        result = onebase(*command)
        assert result.code == 0, result.err
        text = " ".join(result.out.split())
        assert "rank=8, alpha=16" in text
        assert "rank_pattern={q_proj: 4}" in text


@pytest.mark.usefixtures("trained")
def test_the_status_of_runs_is_in_the_language(onebase) -> None:
    assert "finished" in onebase("runs", "list").out
    assert "已完成" in onebase("runs", "list", "--lang", "zh").out


@pytest.mark.usefixtures("trained")
def test_lists_have_units(onebase) -> None:
    listed = onebase("adapters", "list", "--json").json["adapters"]
    out = onebase("adapters", "list").out
    for item in listed:
        assert f" {size(item['bytes'])} " in out
        assert f" {item['metrics']['eval_loss']:.3f} " in out
    assert "留出损失" in onebase("adapters", "list", "--lang", "zh").out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("adapters list", "No adapters yet. Train one: onebase train"),
        ("runs list", "No runs yet."),
        ("keys list", "No keys yet. Create one: onebase keys new"),
    ],
)
def test_an_empty_list_says_so(onebase, command: str, words: str) -> None:
    assert onebase(*command.split()).out.startswith(words)


def test_removing_the_current_version_names_the_new_one(onebase, trained: Path) -> None:
    assert onebase("adapters", "remove", "support@2").out.splitlines() == [
        "removed support@2", "support is now support@1",
    ]  # fmt: skip
    assert onebase("adapters", "remove", "mood").out == "removed mood@1\n"


def test_a_new_key_is_explained_on_stderr(onebase) -> None:
    created = onebase("keys", "new", "--scope", "admin")
    (listed,) = onebase("keys", "list", "--json").json["keys"]
    assert created.out.count("\n") == 1  # the key alone
    assert f"Key {listed['id']} with scope admin." in created.err
    assert f"onebase keys revoke {listed['id']}" in created.err


def test_pulling_a_base_says_what_was_done(onebase, base: str) -> None:
    lines = onebase("model", "pull", base).out.splitlines()
    total = size(sum(file.stat().st_size for file in Path(base).rglob("*") if file.is_file()))
    assert lines[0] == f"{base} was already there: {total} in {base}"
    assert lines[-1] == f"Try: onebase generate --base {base} --prompt …"


@pytest.mark.usefixtures("trained")
def test_an_export_says_what_was_written(onebase) -> None:
    out = onebase("export", "--task", "support@1", "--to", "peft", "--out", "out").out.splitlines()
    assert out[0] == "Exported support@1 as peft to out:"
    written = size((Path("out") / "onebase.json").stat().st_size)
    assert out[-1] == f"  out/onebase.json: {written}"
