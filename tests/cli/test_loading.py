"""`generate`, `classify`, request files and `chat`: each task on its own base, as it was trained."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import Run

from onebase.adapters.full import FULL, save_full, trainable_copy
from onebase.adapters.methods import build_adapter
from onebase.adapters.peft_format import save_adapter
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.engine.engine import Engine
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

ASKED = "Where is every lamp?"
LABELS = ("Monday", "Tuesday")
# Task: its method and its precision. Those with a `b` are of another base than the others.
TASKS = {
    "la": ("lora", "fp32"),
    "na": ("lora", "nf4:fp32"),
    "ia": ("lora", "int8:fp32"),
    "fa": (FULL, "fp32"),
    "lb": ("lora", "fp32"),
    "fb": (FULL, "fp32"),
}
FIVE = ("--max-tokens", "5")


@pytest.fixture(scope="module")
def _stored(
    tiny_folder: Path, unlike_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("stored")
    store = AdapterStore(Workspace(root))
    for name, (method, precision) in TASKS.items():
        base = Base.load(str(unlike_folder if "b" in name else tiny_folder))
        record = {
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "method": method,
            "precision": precision,
            "labels": LABELS,
            "template": Template(base.tokenizer, instruction=f"{name}.").config(),
        }
        torch.manual_seed(len(store.tasks()))
        if method == FULL:
            copy = trainable_copy(base)
            for parameter in copy.model.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            store.add(name, lambda folder, copy=copy: save_full(copy, folder), record)  # type: ignore[misc]
        else:
            adapter = build_adapter(base, "lora", {"rank": 2}, init_text="", seed=0)
            for parameter in adapter.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
            store.add(name, lambda f, a=adapter, b=base: save_adapter(a, f, b), record)  # type: ignore[misc]
    return root


@pytest.fixture
def stored(desk: Path, _stored: Path) -> AdapterStore:
    """The desk's workspace with TASKS, shaken and not trained."""
    shutil.copytree(_stored, desk / "ws")
    return AdapterStore(Workspace(desk / "ws"))


@pytest.fixture(scope="module")
def alone(_stored: Path, tiny_folder: Path, unlike_folder: Path) -> dict[str, Engine]:
    """For every task, and for the base of each half, an engine of its own."""
    engines, stored = {}, AdapterStore(Workspace(_stored))
    for name, (method, precision) in TASKS.items():
        folder = unlike_folder if "b" in name else tiny_folder
        adapter = stored.get(name)
        base_name = str(adapter.path) if method == FULL else str(folder)
        engines[name] = Engine(Base.load(base_name, precision=precision), [adapter])
    engines["base a"] = Engine(Base.load(str(tiny_folder)))
    engines["base b"] = Engine(Base.load(str(unlike_folder)))
    return engines


def expected(alone: dict[str, Engine], name: str, prompt: str = ASKED) -> str:
    (answer,) = alone[name].generate([(name.partition(" ")[0], prompt)], Sampling(max_tokens=5))
    return answer.text


def test_each_answers_differently(alone: dict[str, Engine]) -> None:
    assert len({expected(alone, name) for name in alone}) == len(alone)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    "tasks",
    [
        ["fa", "la"],
        ["la", "fa", "base a"],
        ["na", "la", "ia"],
        ["fb", "na", "lb", "la", "fa"],
        ["fa", "base a"],
    ],
)
def test_a_mixed_file_is_answered_as_each_task_alone(
    tasks: list[str], desk: Path, onebase: Run, alone: dict[str, Engine]
) -> None:
    rows = [{"task": name.partition(" ")[0], "input": ASKED} for name in tasks]
    (desk / "r.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = onebase("generate", "--file", "r.jsonl", *FIVE, "--json")
    assert result.code == 0, result.err
    texts = [answer["text"] for answer in result.json["answers"]]
    assert texts == [expected(alone, name) for name in tasks]
    assert "fp32" in result.err  # what each answers on, where it is not the same


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("task", ["la", "na", "ia", "fa", "fb"])
def test_labels_are_scored_as_in_a_separate_engine(
    task: str, onebase: Run, alone: dict[str, Engine]
) -> None:
    result = onebase("classify", "--task", task, "--text", ASKED, "--json")
    assert result.code == 0, result.err
    (scores,) = alone[task].classify(task, [ASKED])
    logprobs = {item["label"]: item["logprob"] for item in result.json["labels"]}
    assert logprobs == pytest.approx({score.label: score.logprob for score in scores}, abs=1e-6)
    assert result.err == ""


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    "tasks",
    [
        ["fa", "base a", "la", "fa"],
        ["na", "la", "ia", "na"],
        ["lb", "fa", "base b", "fb"],
    ],
)
def test_chat_switches_to_the_tasks_own_base_and_precision(
    tasks: Sequence[str],
    onebase: Run,
    alone: dict[str, Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # `auto` takes w8a8 for no base: it is told from fp32 by tests of its own.
    monkeypatch.setattr("onebase.engine.lean.quality.supports", lambda _: False)
    first, *rest = [name.partition(" ")[0] for name in tasks]
    lines = [ASKED, *(line for name in rest for line in (f"/task {name}", ASKED))]
    result = onebase("chat", "--task", first, *FIVE, "--json", stdin="\n".join(lines))
    assert result.code == 0, result.err
    texts = [answer["text"] for answer in result.json["answers"]]
    assert texts == [expected(alone, name) for name in tasks]
    if "na" in tasks:
        assert "Precision nf4" in result.err


def test_the_base_and_precision_options_apply_to_all_tasks(
    desk: Path, onebase: Run, stored: AdapterStore, tiny_folder: Path
) -> None:
    shutil.copytree(tiny_folder, desk / "moved")
    rows = [{"task": name, "input": ASKED} for name in ("na", "la", "base")]
    (desk / "r.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    named = ("--base", "moved", "--precision", "int8")
    result = onebase("generate", "--file", "r.jsonl", *named, *FIVE, "--json")
    assert result.code == 0, result.err
    engine = Engine(
        Base.load(str(tiny_folder), precision="int8"), [stored.get("na"), stored.get("la")]
    )
    answers = engine.generate([(row["task"], ASKED) for row in rows], Sampling(max_tokens=5))
    assert [item["text"] for item in result.json["answers"]] == [item.text for item in answers]
    assert result.err == ""


@pytest.mark.usefixtures("stored")
def test_the_task_base_needs_a_base_option_beside_tasks_of_several_bases(
    desk: Path, onebase: Run
) -> None:
    rows = [{"task": name, "input": ASKED} for name in ("la", "lb", "base")]
    (desk / "r.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = onebase("generate", "--file", "r.jsonl")
    assert result.code == 2
    assert "--base" in result.err
    assert result.err.count("tiny-base") == result.err.count("unlike-base") == 1


@pytest.mark.parametrize("command", ["generate", "classify", "chat"])
def test_the_error_for_a_missing_base_names_its_task(
    command: str, onebase: Run, stored: AdapterStore, desk: Path
) -> None:
    file = stored.get("la").path / "onebase.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**record, "base": "/gone/base"}), encoding="utf-8")
    options = {"generate": ("--prompt", "x"), "classify": ("--text", "x"), "chat": ()}[command]
    result = onebase(command, "--task", "la", *options)
    assert result.code == 1
    assert "la@1 belongs to the base /gone/base" in result.err
    assert "--base" in result.err


def test_a_full_task_does_not_need_the_base_it_came_from(
    onebase: Run, stored: AdapterStore, alone: dict[str, Engine]
) -> None:
    file = stored.get("fa").path / "onebase.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**record, "base": "/gone/base"}), encoding="utf-8")
    command = ("chat", "--task", "fa", "--precision", "fp32", *FIVE, "--json")
    result = onebase(*command, stdin=f"{ASKED}\n/task base\n/reset\n{ASKED}\n")
    assert result.code == 0, result.err
    assert [item["text"] for item in result.json["answers"]] == [expected(alone, "fa")] * 2
    assert "/gone/base" in result.err
