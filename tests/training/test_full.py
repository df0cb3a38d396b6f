"""Full fine-tuning: a base of its own, trained by the same loop, saved, served, refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.test_loop import Losses, held_out_loss, run_steps, write_rows
from torch.nn.functional import cross_entropy

import onebase
from onebase.adapters.store import AdapterStore
from onebase.adapters.workspace import Workspace
from onebase.data.template import Template
from onebase.errors import CorruptFileError, UsageError
from onebase.model.base import Base
from onebase.model.precision import choose
from onebase.training.job import Job
from onebase.training.job_state import JobState
from onebase.training.loop import step_together

SETTINGS = {"batch_size": 4, "epochs": 3, "warmup": 2, "learning_rate": 1e-3}


def test_full_equals_a_plain_padded_loop(
    architecture: str,
    tmp_path: Path,
    make_base: Callable[..., Base],
    plain_model: Callable[..., Any],
) -> None:
    job = Job("a", write_rows(tmp_path, "a", 16), "full", "Say it.", set=SETTINGS)
    observer, job_state = Losses(), JobState(job, make_base(architecture))
    for _ in range(6):
        step_together(job_state.base, [job_state], observer)

    twin = JobState(job, make_base(architecture))
    model = plain_model(architecture).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    theirs = []
    for step in range(6):
        rows = [row for part in twin.next_batch() for row in part]
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for at, row in enumerate(rows):
            tokens = torch.tensor(row.ids)
            ids[at, : len(tokens)] = tokens
            labels[at, : len(tokens)] = torch.where(torch.tensor(row.loss_mask), tokens, -100)
            mask[at, : len(tokens)] = 1
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = (step + 1) / 2 if step < 2 else 1 - (step - 2) / (twin.total_steps - 2)
        optimizer.param_groups[0]["lr"] = 1e-3 * rate
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    assert observer.by_task["a"] == pytest.approx(theirs, abs=2e-5)


def test_its_result_is_a_base_of_its_own_beside_the_others(
    tmp_path: Path, make_base: Callable[..., Base], plain_model: Callable[..., Any]
) -> None:
    base = make_base()
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    file = write_rows(tmp_path, "a", 16)
    jobs = [
        Job("whole", file, "full", "Say it.", set=SETTINGS),
        Job("light", file, "lora", "Say it.", set={"rank": 2, "epochs": 2, "batch_size": 4}),
    ]
    whole, light = onebase.train(jobs, base=base, workspace=Workspace(tmp_path / "w"))
    plain, job_state = plain_model("llama"), JobState(jobs[0], base)
    losses = held_out_loss(plain, job_state)
    assert whole.metrics["base_eval_loss"] == pytest.approx(losses, abs=1e-5)
    trained = held_out_loss(type(plain).from_pretrained(whole.path), job_state)
    assert whole.metrics["eval_loss"] == pytest.approx(trained, abs=1e-5)
    assert trained < losses - 0.1
    assert whole.metrics["trainable"] == sum(p.numel() for p in base.model.parameters())
    for name, value in base.model.state_dict().items():
        assert torch.equal(value, before[name])  # the shared base is untouched

    own = Base.load(str(whole.path))
    assert own.fingerprint != base.fingerprint
    requests = [("whole", "parcel today"), ("light", "parcel today"), ("base", "hello")]
    engine = onebase.Engine(base, [whole, light])
    answers = engine.generate([*requests, ("whole", "late lamp")])
    template = Template(own.tokenizer, instruction="Say it.")
    alone = onebase.Engine(own)
    alone.tasks.load_full("whole", own, template)
    expected = alone.generate([("whole", "parcel today"), ("whole", "late lamp")])
    assert [answers[0].text, answers[3].text] == [answer.text for answer in expected]
    assert answers[0].task == "whole"
    scores = engine.classify("whole", ["parcel"], ["order", "lamp"])[0]
    assert scores == alone.classify("whole", ["parcel"], ["order", "lamp"])[0]
    light_alone = onebase.Engine(base, [light]).generate(requests[1:])
    assert [answer.text for answer in answers[1:3]] == [answer.text for answer in light_alone]


def test_a_job_beside_it_learns_as_it_does_alone(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    file = write_rows(tmp_path, "a", 16)
    light = Job("light", file, "lora", set={"rank": 2, "batch_size": 4})
    alone, _ = run_steps(make_base(), [light], 4)
    base = make_base()
    observer = Losses()
    job_states = [JobState(Job("whole", file, "full", set=SETTINGS), base), JobState(light, base)]
    assert job_states[0].base is not base
    onebase.training.loop.train_together(job_states, observer)
    assert observer.by_task["light"][:4] == pytest.approx(alone.by_task["light"], abs=1e-5)


def test_damage_of_its_files_is_found(tmp_path: Path, make_base: Callable[..., Base]) -> None:
    job = Job("whole", write_rows(tmp_path, "a", 8), "full", set={"epochs": 1})
    workspace = Workspace(tmp_path / "w")
    (stored,) = onebase.train([job], base=make_base(), workspace=workspace)
    names = {file.name for file in stored.path.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "onebase.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    store = AdapterStore(workspace)
    store.verify(stored)
    weights = stored.path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptFileError, match="SHA-256"):
        store.verify(stored)
    record = json.loads((stored.path / "onebase.json").read_text(encoding="utf-8"))
    assert record["method"] == "full"


def test_what_it_does_not_go_with_is_refused(
    tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    base = make_base()
    file = write_rows(tmp_path, "a", 8)
    with pytest.raises(UsageError, match="full and lora can't be combined"):
        JobState(Job("a", file, "full+lora"), base)
    base.hold_in(choose("int8", device="cpu", stored=torch.float32), "cpu")
    with pytest.raises(UsageError, match=r"full trains every weight.*int8"):
        JobState(Job("a", file, "full"), base)
