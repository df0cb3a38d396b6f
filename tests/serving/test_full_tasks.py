"""Full fine-tuned tasks in a server: each answers by a tokenizer and a template of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.adapters.full import save_full, trainable_copy
from onebase.adapters.store import AdapterStore
from onebase.data.template import Template
from onebase.model.base import Base


@pytest.fixture
def full_server(
    start: Callable[..., Any], store: AdapterStore, unlike_folder: Path
) -> tuple[Any, Base]:
    """A server of another base with the task `whole`, and the model that the task is."""
    base = Base.load(str(unlike_folder), device="cpu")
    copy = trainable_copy(base)
    torch.manual_seed(3)
    for parameter in copy.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    record = {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "precision": "fp32",
        "method": "full",
        "template": Template(base.tokenizer, instruction="Say it.").config(),
    }
    stored = store.add("whole", lambda folder: save_full(copy, folder), record)
    return start(allow_full=True), Base.load(str(stored.path), device="cpu")


def whole_characters(text: str) -> str:
    return text.replace("\ufffd", "").strip()


def test_tokens_are_spelled_as_its_own_tokenizer_does(full_server: tuple[Any, Base]) -> None:
    server, task_base = full_server
    fields = {"model": "whole", "temperature": 0, "max_tokens": 12}
    prompt = "every lamp on Monday"
    spelled = [
        task_base.tokenizer.decode([token]) for token in task_base.tokenizer(prompt)["input_ids"]
    ]
    echoed = server.http.post(
        "/v1/completions", json={**fields, "prompt": prompt, "echo": True, "logprobs": 1}
    ).json()["choices"][0]
    assert echoed["logprobs"]["tokens"][: len(spelled)] == spelled
    assert echoed["logprobs"]["text_offset"][1] == len(spelled[0])

    chat = server.chat("whole", prompt, logprobs=True, max_tokens=12).json()["choices"][0]
    assert len(chat["logprobs"]["content"]) == 12
    assert whole_characters(chat["message"]["content"])
    raw = b"".join(bytes(item["bytes"]) for item in chat["logprobs"]["content"])
    assert whole_characters(raw.decode(errors="replace")) == whole_characters(
        chat["message"]["content"]
    )

    body: dict[str, Any] = {"model": "whole", "input": prompt, "temperature": 0}
    body |= {"max_output_tokens": 12, "top_logprobs": 1}
    response = server.http.post("/v1/responses", json=body).json()
    part = response["output"][0]["content"][0]
    raw = b"".join(bytes(item["bytes"]) for item in part["logprobs"])
    assert whole_characters(raw.decode(errors="replace")) == whole_characters(part["text"])
    assert part["text"] == chat["message"]["content"]


def test_it_is_not_held_in_the_servers_precision(full_server: tuple[Any, Base]) -> None:
    server, _ = full_server
    assert server.chat("whole").status_code == 200
    models = {item["id"]: item for item in server.http.get("/v1/models").json()["data"]}
    assert models["whole"]["warning"] is None
