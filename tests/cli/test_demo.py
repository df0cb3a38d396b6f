"""`onebase demo`, with few rows and a tiny base."""

import json
from pathlib import Path

import pytest
from tests.cli.conftest import MOODS, SUPPORT, Run, write_rows


@pytest.fixture(autouse=True)
def _few_rows(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with two short jobs in place of the demo's data."""
    folder = desk / "demo"
    folder.mkdir()
    for name, rows in (("support", SUPPORT), ("mood", MOODS)):
        write_rows(folder / f"{name}.jsonl", rows[:-2])
        write_rows(folder / f"{name}.heldout.jsonl", rows[-2:])
    job = "  - {{task: {0}, data: {0}.jsonl, held_out: {0}.heldout.jsonl, set: {{epochs: 1}}}}\n"
    jobs = "jobs:\n" + job.format("support") + job.format("mood")
    (folder / "tasks.yaml").write_text(jobs, encoding="utf-8")
    monkeypatch.setattr("onebase.cli.demo_report.demo_folder", lambda name: folder)


def test_the_demo_is_trained_once(onebase: Run, base: str) -> None:
    first = onebase("demo", "--base", base)
    assert first.code == 0, first.err
    lines = first.out.splitlines()
    titles = [line.partition(":")[0] for line in lines if line.startswith("## ")]
    assert titles == ["## support@1 (lora)", "## mood@1 (lora)"]
    assert (lines.count("before:"), lines.count("after:")) == (2, 2)
    (report,) = [line for line in lines if line.startswith("Report:")]
    assert Path(report.partition(":")[2].strip()).read_text(encoding="utf-8") in first.out

    second = onebase("demo", "--base", base, "--json")
    assert "Already trained." in second.err
    assert second.json.keys() == {"run", "adapters", "before", "after", "report"}
    assert [item["version"] for item in second.json["adapters"]] == [1, 1]
    answer = second.json["after"][0]["text"]
    assert all(f"> {line}" in first.out for line in answer.splitlines())

    third = onebase("demo", "--base", base, "--again", "--json")
    assert [item["version"] for item in third.json["adapters"]] == [2, 2]
    assert len(json.loads(onebase("runs", "list", "--json").out)["runs"]) == 2
