"""From jobs to stored versions."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.training.test_loop import held_out_loss

import onebase
from onebase.cli.training import report_line
from onebase.errors import DataError, UsageError
from onebase.model.base import Base
from onebase.model.precision import choose
from onebase.runs.observer import Observer
from onebase.runs.run import RunStore
from onebase.training.job_state import JobState


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    items = [{"question": f"where is parcel {i}?", "answer": f"on its way {i}"} for i in range(12)]
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return file


def job(rows: Path, **changes: Any) -> onebase.Job:
    settings = {"rank": 2, "epochs": 3, "batch_size": 4, "save_limit": 1}
    return onebase.Job(**{"task": "support", "data": rows, "set": settings, **changes})


def test_a_training_leaves_a_version_and_a_record(
    rows: Path,
    tmp_path: Path,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    base = make_base()
    first = onebase.train([job(rows)], base=base, workspace=workspace)[0]
    second = onebase.train([job(rows)], base=base, workspace=workspace)[0]
    assert (first.version, second.version) == (1, 2)
    assert {"adapter_config.json", "adapter_model.safetensors", "onebase.json"} == {
        file.name for file in second.path.iterdir()
    }
    weights = [(item.path / "adapter_model.safetensors").read_bytes() for item in (first, second)]
    assert weights[0] == weights[1]  # one seed, bit-identical adapters
    record = second.record
    assert record["base_fingerprint"] == base.fingerprint
    job_state, plain = JobState(job(rows), base), plain_model("llama")
    before = held_out_loss(plain, job_state)
    assert record["metrics"]["base_eval_loss"] == pytest.approx(before, abs=1e-5)
    adapted = peft.PeftModel.from_pretrained(plain, str(second.path)).eval()
    after = held_out_loss(adapted, job_state)
    assert record["metrics"]["eval_loss"] == pytest.approx(after, abs=1e-5)
    assert after < before - 0.1
    run = RunStore(workspace).get(record["run"])
    assert run.status == "finished"
    metrics = run.metrics()
    assert sum("learning_rate" in line for line in metrics) == 9
    assert sum("eval_loss" in line for line in metrics) == 3
    (kept,) = run.checkpoints.iterdir()  # the end; the others went when the run was finished
    assert {file.name for file in kept.iterdir()} == {"state.pt", "manifest.json"}


SEEDED = {
    "full": {},
    "lora": {"rank": 2, "dropout": 0.5, "use_dora": True},
    "qlora": {"rank": 2, "gradient_checkpointing": True},
    "ia3": {},
    "prompt-tuning": {"virtual_tokens": 3, "init": "random"},
    "p-tuning": {"virtual_tokens": 3, "hidden": 8, "encoder": "lstm"},
    "p-tuning-v2": {"virtual_tokens": 3, "init": "vocab"},
    "lora+p-tuning+p-tuning-v2": {"virtual_tokens": 3, "dropout": 0.3},
}


@pytest.mark.parametrize("method", list(SEEDED))
def test_one_seed_gives_bit_identical_adapters(
    method: str, rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    """Whatever else draws numbers; and another seed gives other weights."""
    weights: list[bytes] = []
    for turn, seed in enumerate([5, 5, 6]):
        base = make_base()
        torch.manual_seed(turn)  # whatever the program drew before
        if method == "qlora":
            base.hold_in(choose("nf4", device="cpu", stored=torch.float32), "cpu")
        settings = {"epochs": 2, "batch_size": 4, **SEEDED[method]}
        jobs = [job(rows, method=method, seed=seed, set=settings)]
        workspace = onebase.Workspace(tmp_path / str(turn))
        stored = onebase.train(jobs, base=base, workspace=workspace)[0]
        (file,) = stored.path.glob("*model.safetensors")
        weights.append(file.read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_trained_adapter_loads_without_a_pass_through_the_base(
    rows: Path,
    tmp_path: Path,
    make_base: Callable[..., Base],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = make_base()
    settings = {"virtual_tokens": 3, "epochs": 1}
    trained = onebase.train(
        [job(rows, method="prompt-tuning", set=settings)],
        base=base,
        workspace=onebase.Workspace(tmp_path / "w"),
    )
    monkeypatch.delattr("onebase.engine.generic_runner.node_kv")
    assert onebase.Engine(base, trained).tasks["support"].contribution.prefix_tokens == 3


class Interrupting(Observer):
    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        if step == 2:
            raise KeyboardInterrupt


def test_an_interruption_leaves_no_adapter_and_says_so(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    with pytest.raises(KeyboardInterrupt):
        onebase.train([job(rows)], base=make_base(), workspace=workspace, observer=Interrupting())
    (run,) = RunStore(workspace).list()
    assert run.status == "interrupted"
    assert [line["step"] for line in run.metrics() if "learning_rate" in line] == [1, 2]
    assert onebase.AdapterStore(workspace).list() == []


def test_a_bad_row_trains_nothing_unless_skipped(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    with rows.open("a", encoding="utf-8") as stream:
        stream.write('{"question": "and this?", "answer": ""}\n')
    workspace = onebase.Workspace(tmp_path / "w")
    with pytest.raises(DataError, match=r"rows\.jsonl:13, column 'answer': empty"):
        onebase.train([job(rows)], base=make_base(), workspace=workspace)
    assert not workspace.root.exists()
    stored = onebase.train([job(rows, skip_bad=True)], base=make_base(), workspace=workspace)
    run = RunStore(workspace).get(stored[0].record["run"])
    skipped = json.loads((run.path / "skipped-support.jsonl").read_text(encoding="utf-8"))
    assert skipped["line"] == 13
    assert skipped["column"] == "answer"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "lara"}, "lora"),
        ({"set": {"rnak": 4}}, "rank"),
        ({"set": {"rank": -1}}, "rank=-1"),
        ({"set": {"epochs": "many"}}, "epochs='many'"),
        ({"method": "p-tuning", "set": {"rank": 4}}, "virtual_tokens"),
        ({"task": "base"}, "base"),
        ({"set": {"target": "q_prj"}}, "q_proj"),
    ],
)
def test_a_wrong_job_is_refused_before_anything_is_written(
    changes: dict[str, Any],
    named: str,
    rows: Path,
    tmp_path: Path,
    make_base: Callable[..., Base],
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    with pytest.raises(UsageError, match=named):
        onebase.train([job(rows, **changes)], base=make_base(), workspace=workspace)
    assert not workspace.root.exists()


def test_a_whole_run_is_on_record(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    jobs = [
        job(rows, set={"rank": 2, "epochs": 5, "batch_size": 4, "save_limit": 2}),
        job(rows, task="second", method="p-tuning", seed=3, set={"epochs": 2}),
    ]
    stored = onebase.train(jobs, base=make_base(), workspace=workspace)
    assert [item.task for item in stored] == ["support", "second"]
    record = json.loads((stored[1].path / "onebase.json").read_text(encoding="utf-8"))
    assert set(record) == {
        *("task", "version", "created", "sha256", "base", "base_fingerprint"),
        *("precision", "method", "options"),
        *("template", "data", "data_sha256", "labels", "run", "metrics"),
    }
    assert record["data_sha256"] == hashlib.sha256(rows.read_bytes()).hexdigest()
    assert record["options"]["virtual_tokens"] == 20
    run = RunStore(workspace).get(record["run"])
    assert run.config["jobs"][1]["set"]["epochs"] == 2
    assert run.config["jobs"][1]["seed"] == 3
    for item, steps, epochs in zip(stored, (15, 4), (5, 2), strict=True):
        lines = [line for line in run.metrics() if line["task"] == item.task]
        assert [line["step"] for line in lines if "learning_rate" in line] == list(
            range(1, steps + 1)
        )
        judged = [line for line in lines if "eval_loss" in line]
        assert [line["epoch"] for line in judged] == list(range(1, epochs + 1))
        assert sum("base_eval_loss" in line for line in lines) == 1
        best = min(judged, key=lambda line: line["eval_loss"])
        assert item.record["metrics"]["eval_loss"] == best["eval_loss"]
        assert item.record["metrics"]["best_step"] == best["step"]
        (kept,) = run.checkpoints.iterdir()
        state = torch.load(kept / "state.pt")["state"]["jobs"][item.task]
        assert state["counts"]["best_step"] == best["step"]
        assert state["counts"]["best_loss"] == best["eval_loss"]
        if item.task == "second":  # its encoder, which the stored adapter no longer has
            assert any(name.startswith("prompt.mlp") for name in state["best"])


class Failing(Interrupting):
    def step(self, task: str, step: int, record: Mapping[str, Any]) -> None:
        raise RuntimeError("no space")


def test_a_failure_leaves_a_failed_run_and_no_adapter(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    with pytest.raises(RuntimeError, match="no space"):
        onebase.train([job(rows)], base=make_base(), workspace=workspace, observer=Failing())
    (run,) = RunStore(workspace).list()
    assert run.status == "failed"
    assert [line["step"] for line in run.metrics() if "learning_rate" in line] == [1]
    assert onebase.AdapterStore(workspace).list() == []


def test_an_interruption_leaves_the_earlier_version_current(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    workspace, base = onebase.Workspace(tmp_path / "w"), make_base()
    onebase.train([job(rows)], base=base, workspace=workspace)
    with pytest.raises(KeyboardInterrupt):
        onebase.train([job(rows)], base=base, workspace=workspace, observer=Interrupting())
    assert onebase.AdapterStore(workspace).get("support").version == 1
    assert [item.version for item in onebase.AdapterStore(workspace).list()] == [1]


def test_a_job_that_diverges_at_once_is_not_stored_and_the_others_are(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    wild = job(rows, task="wild", set={"learning_rate": 1e30, "epochs": 2})
    with pytest.raises(onebase.OnebaseError, match=r"wild.*Stored: support@1.*learning_rate"):
        onebase.train([job(rows), wild], base=make_base(), workspace=workspace)
    assert [item.name for item in onebase.AdapterStore(workspace).list()] == ["support@1"]
    run = RunStore(workspace).list()[0]
    assert run.status == "failed"
    assert run.summary["diverged"] == ["wild"]

    def refuse(constant: str) -> None:
        raise AssertionError(constant)  # NaN and Infinity are no JSON

    for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=refuse)


def test_skipped_rows_of_a_held_out_file_are_written_down(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text('{"question": "a", "answer": "b"}\n{"question": "c"}\n', encoding="utf-8")
    workspace = onebase.Workspace(tmp_path / "w")
    changed = job(rows, held_out=held, skip_bad=True)
    stored = onebase.train([changed], base=make_base(), workspace=workspace)[0]
    run = RunStore(workspace).get(stored.record["run"])
    skipped = json.loads((run.path / "skipped-support.jsonl").read_text(encoding="utf-8"))
    assert (skipped["file"], skipped["line"]) == (str(held), 2)


@pytest.mark.parametrize("column", ["tools", "weight_of_row", "source"])
def test_columns_of_a_held_out_file_that_are_not_read_are_told(
    column: str, rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    held = tmp_path / "held.jsonl"
    row = {"question": "a", "answer": "b", column: "x"}
    held.write_text(json.dumps(row) + "\n", encoding="utf-8")
    workspace = onebase.Workspace(tmp_path / "w")
    (stored,) = onebase.train([job(rows, held_out=held)], base=make_base(), workspace=workspace)
    lines = RunStore(workspace).get(stored.record["run"]).metrics()
    (note,) = [line["note"] for line in lines if "note" in line]
    assert note == f"support: Not read in {held}: {column!r}. Their content is ignored."


def test_bad_rows_of_a_held_out_file_are_refused_too(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text('{"question": "a", "answer": "b"}\n{"question": "c"}\n', encoding="utf-8")
    workspace = onebase.Workspace(tmp_path / "w")
    with pytest.raises(DataError, match=r"held\.jsonl:2, column 'answer': missing"):
        onebase.train([job(rows, held_out=held)], base=make_base(), workspace=workspace)
    assert not workspace.root.exists()


ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Noting(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, text: str, **facts: Any) -> None:
        self.notes.append(text)


def chat(*said: str) -> dict[str, Any]:
    """Turns of the user, the last of the assistant."""
    roles = ["user"] * (len(said) - 1) + ["assistant"]
    turns = zip(roles, said, strict=True)
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat("a", "b", "c"), "the chat template refuses these turns: roles must alternate"),
        (chat("a", "b", "c", "d"), "roles must alternate"),
        (chat("a"), "an assistant turn before any user turn"),
        ({"messages": []}, "empty"),
    ],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_rows_that_the_template_refuses_are_refused_by_line_or_skipped(
    row: dict[str, Any], reason: str, held_out: bool, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base, workspace = make_base(), onebase.Workspace(tmp_path / "w")
    base.tokenizer.chat_template = ALTERNATING
    good = [chat(f"where is {number}?", "on its way") for number in range(8)]
    files = []
    for name, rows in (("one", good), ("two", [*good, row, row])):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(f"{json.dumps(item)}\n" for item in rows), encoding="utf-8")
    learned, judged = (files[0], files[1]) if held_out else (files[1], None)
    with pytest.raises(DataError) as refused:
        onebase.train([job(learned, held_out=judged)], base=base, workspace=workspace)
    assert refused.value.message.count(reason) == 2
    assert f"{files[1]}:9" in refused.value.message
    observer = Noting()
    skipping = job(learned, held_out=judged, skip_bad=True)
    stored = onebase.train([skipping], base=base, workspace=workspace, observer=observer)[0]
    run = RunStore(workspace).get(stored.record["run"])
    text = (run.path / "skipped-support.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["file"], line["line"]) for line in lines] == [(str(files[1]), n) for n in (9, 10)]
    assert [reason in line["reason"] for line in lines] == [True, True]
    (note,) = [note for note in observer.notes if "Left out: " in note]
    assert f"Left out: 2 rows, such as {files[1]}:9" in note


def test_rows_of_which_nothing_is_left_are_told_and_listed(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    rows = [chat(f"where is {number}?", "on its way") for number in range(8)]
    system = {"role": "system", "content": "long " * 40}
    rows.append({"messages": [system, *chat("q", "a")["messages"]]})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    workspace, observer = onebase.Workspace(tmp_path / "w"), Noting()
    asked = job(data, set={"rank": 2, "epochs": 1, "max_tokens": 64, "held_out": 0})
    onebase.train([asked], base=make_base(), workspace=workspace, observer=observer)
    (note,) = [note for note in observer.notes if "Left out: " in note]
    assert f"Left out: 1 row, such as {data}:9: leaves no answer within max_tokens (64)" in note
    (run,) = RunStore(workspace).list()
    listed = json.loads((run.path / "skipped-support.jsonl").read_text(encoding="utf-8"))
    assert (listed["line"], listed["reason"]) == (9, "leaves no answer within max_tokens (64)")


def test_answers_that_the_template_rewrites_are_told_before_training(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    base.tokenizer.chat_template = base.tokenizer.chat_template.replace(
        "{{ message['content'] }}",
        "{{ message['content'] if loop.last else message['content'].split('</think>')[-1] }}",
    )
    turns = [*chat("q", "<think>x</think>a")["messages"], *chat("r", "b")["messages"]]
    data = tmp_path / "rows.jsonl"
    data.write_text(f"{json.dumps({'messages': turns})}\n" * 8, encoding="utf-8")
    observer = Noting()
    workspace = onebase.Workspace(tmp_path / "w")
    job_of_all = job(data, set={"rank": 2, "epochs": 1, "held_out": 0})
    onebase.train([job_of_all], base=base, workspace=workspace, observer=observer)
    (note,) = [note for note in observer.notes if "Earlier answers" in note]
    lines = "lines 1, 2, 3, 4, 5 and 3 more"
    assert f"Earlier answers are not trained on in {lines} (8 answers)" in note


def test_rows_that_leave_nothing_to_learn(
    rows: Path, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    workspace = onebase.Workspace(tmp_path / "w")
    changed = job(rows, instruction="long " * 40, set={"max_tokens": 8})
    with pytest.raises(DataError, match=r"rows\.jsonl leaves anything to learn within 8 tokens"):
        onebase.train([changed], base=make_base(), workspace=workspace)
    assert not workspace.root.exists()


@pytest.mark.parametrize("method", ["p-tuning-v2", "prompt-tuning", "p-tuning"])
def test_what_no_answer_attends_to_is_told_and_not_promoted(
    method: str, tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    """Three layers with a window of 8 tokens see 24 back: virtual tokens before a long text are out."""
    file = tmp_path / "long.jsonl"
    items = [{"input": f"{'why ' * 12}{i}", "output": "so"} for i in range(6)]
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    settings = {"virtual_tokens": 2, "epochs": 2, "batch_size": 4}
    workspace, observer = onebase.Workspace(tmp_path / "w"), Noting()
    base = make_base("mistral")
    still, near = (
        onebase.Job(name, file, used, set=own)
        for name, used, own in (("still", method, settings), ("near", "lora", {"epochs": 1}))
    )
    stored = onebase.train([still, near], base=base, workspace=workspace, observer=observer)
    assert [item.current for item in stored] == [False, True]
    assert [item.metrics["learned"] for item in stored] == [False, True]
    (told,) = [text for text in observer.notes if "the gradient was exactly 0" in text]
    assert told.startswith("still: ")
    assert "the last 8 tokens" in told
    assert "nothing was learned" in report_line(stored[0])
    assert "nothing was learned" not in report_line(stored[1])
