"""POST /v1/chat/completions: shapes, streams, choices, log-probabilities, systems, refusals."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.adapters.adapter import Adapter
from onebase.adapters.peft_format import load_adapter
from onebase.data.example import Turn
from onebase.data.template import Template
from onebase.engine.engine import Answer, Engine
from onebase.engine.forward import run_pack
from onebase.engine.pack import Pack
from onebase.engine.sampling import Sampling
from onebase.model.base import Base
from onebase.serving.token_text import TokenText

Task = str
PATH = "/v1/chat/completions"
TASKS = ["base", "support", "support@1", "tone", "mood", "reply"]
USER = [{"role": "user", "content": "hello"}]


def test_the_whole_answer(server: Any, base: Base) -> None:
    answer = server.chat("support")
    assert answer.status_code == 200
    body = answer.json()
    (choice,) = body["choices"]
    assert body["object"] == "chat.completion"
    assert body["model"] == "support@2"
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    prompt = (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    tokens = len(base.tokenizer(prompt)["input_ids"])
    assert body["usage"] == {
        "prompt_tokens": tokens,
        "completion_tokens": 8,
        "total_tokens": tokens + 8,
    }
    assert body["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
    assert "x-onebase-ignored" not in answer.headers


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_the_engines(task: Task, server: Any, make_base: Callable[..., Base]) -> None:
    engine = Engine(make_base())
    if task != "base":
        engine.load(server.store.get(task), name=task)
    (expected,) = engine.generate([(task, "hello")], Sampling(max_tokens=12))
    assert server.text(task, max_tokens=12) == expected.text


def test_each_task_has_an_answer_of_its_own(server: Any) -> None:
    assert len({server.text(task, max_tokens=12) for task in TASKS}) == len(TASKS)


@pytest.mark.parametrize("task", ["base", "support"])
@pytest.mark.parametrize("fields", [{}, {"temperature": 1.2, "seed": 5}, {"stop": ["e", "o"]}])
def test_a_streams_deltas_are_the_whole_answer(
    task: Task, fields: dict[str, Any], server: Any
) -> None:
    body = {"model": task, "messages": USER, "max_tokens": 24, "temperature": 0, **fields}
    whole = server.http.post(PATH, json=body).json()
    *chunks, done = server.events(PATH, **body)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {whole["model"]}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]]
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_in_a_stream(server: Any) -> None:
    body = {"model": "tone", "messages": USER, "max_tokens": 6, "temperature": 0}
    whole = server.http.post(PATH, json=body).json()
    events = server.events(PATH, **body, stream_options={"include_usage": True})
    *chunks, last, done = events
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_choices(stream: bool, server: Any) -> None:
    body = {"model": "tone", "messages": USER, "max_tokens": 8, "temperature": 1.0, "n": 3}
    body["seed"] = 11
    again = server.http.post(PATH, json=body).json()["choices"]
    if stream:
        texts = ["", "", ""]
        for chunk in server.events(PATH, **body)[:-1]:
            (choice,) = chunk["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
    else:
        choices = server.http.post(PATH, json=body).json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        texts = [choice["message"]["content"] for choice in choices]
    assert texts == [choice["message"]["content"] for choice in again]
    assert len(set(texts)) == 3
    # Each is what its own seed says.
    for place, text in enumerate(texts):
        one = server.http.post(PATH, json={**body, "n": 1, "seed": 11 + place}).json()
        assert one["choices"][0]["message"]["content"] == text


def greedy_steps(base: Base, adapter: Adapter, prompt: list[int]) -> Iterator[Tensor]:
    """The log-probabilities of the vocabulary at each step of a greedy answer: one pass a step."""
    ids = list(prompt)
    while True:
        pack = Pack({"it": adapter.contribution()})
        pack.add("it", ids)
        with torch.no_grad():
            logprobs = run_pack(base, pack, torch.tensor([len(ids) - 1]))[0].log_softmax(-1)
        yield logprobs
        ids.append(int(logprobs.argmax()))


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(stream: bool, server: Any, make_base: Callable[..., Base]) -> None:
    base, stored = make_base(), server.store.get("support")
    adapter = load_adapter(stored.path, base).eval()
    prompt = Template(base.tokenizer, instruction="Be kind.").prompt("hello")
    body = {"model": "support", "messages": USER, "max_tokens": 6, "temperature": 0}
    body |= {"logprobs": True, "top_logprobs": 3}
    if stream:
        events = server.events(PATH, **body)[:-1]
        parts = [chunk["choices"][0].get("logprobs") for chunk in events]
        content = [entry for part in parts if part for entry in part["content"]]
    else:
        content = server.http.post(PATH, json=body).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    texts = TokenText(base.tokenizer)
    for entry, logprobs in zip(content, greedy_steps(base, adapter, prompt), strict=False):
        best = logprobs.topk(3)
        found = [likely["logprob"] for likely in entry["top_logprobs"]]
        assert found == pytest.approx(best.values.tolist(), abs=1e-5)
        ids = best.indices.tolist()
        assert [likely["token"] for likely in entry["top_logprobs"]] == [texts.of(i) for i in ids]
        assert entry["bytes"] == list(texts.bytes_of(ids[0]))
        first = entry["top_logprobs"][0]
        assert {name: entry[name] for name in first} == first  # the answer is greedy


def test_no_top_logprobs(server: Any) -> None:
    body = server.chat(logprobs=True).json()
    content = body["choices"][0]["logprobs"]["content"]
    tokens = body["usage"]["completion_tokens"]
    assert [entry["top_logprobs"] for entry in content] == [[]] * tokens
    assert tokens == 8


def test_both_names_of_the_longest_answer(server: Any) -> None:
    for fields in ({"max_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": None}):
        body = server.chat(**fields).json()
        assert body["usage"]["completion_tokens"] == 3
        assert body["choices"][0]["finish_reason"] == "length"


def test_a_default_length(start: Callable[..., Any]) -> None:
    server = start(limits={"default_tokens": 5})
    body = server.chat(max_tokens=None, logit_bias={"2": -100}).json()
    assert body["usage"]["completion_tokens"] == 5
    assert body["choices"][0]["finish_reason"] == "length"


def test_a_conversation_and_parts_of_text(server: Any, make_base: Callable[..., Base]) -> None:
    engine = Engine(make_base(), [server.store.get("tone")])
    turns = [Turn("user", "hello"), Turn("assistant", "yes"), Turn("user", "how are you?")]
    (expected,) = engine.generate([("tone", turns)], Sampling(max_tokens=8))
    parts = [{"type": "text", "text": "how "}, {"type": "text", "text": "are you?"}]
    messages = [*USER, {"role": "assistant", "content": "yes"}, {"role": "user", "content": parts}]
    assert server.text("tone", messages=messages) == expected.text


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_stands_behind_the_instruction(
    role: str, server: Any, make_base: Callable[..., Base]
) -> None:
    engine = Engine(make_base(), [server.store.get("support")])

    def expected(system: str) -> str:
        turns = [Turn("system", system), Turn("user", "hello")]
        return engine.generate([("support", turns)], Sampling(max_tokens=8))[0].text

    def answer_text(*system: str) -> str:
        messages = [{"role": role, "content": text} for text in system]
        return str(server.text("support", messages=[*messages, *USER]))

    assert answer_text("Be brief.") == expected("Be kind.\n\nBe brief.")
    assert answer_text("Be brief.", "Be bold.") == expected("Be kind.\n\nBe brief.\n\nBe bold.")
    assert answer_text("Be kind.") == answer_text() == answer_text(" ") == expected("Be kind.")
    assert answer_text("Be kind. And warm.") == expected("Be kind. And warm.")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
         "messages.0.content.0.type=image_url"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages.0.role=tool"),
        ([*USER, {"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}],
         "messages.1.tool_calls"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text"),
        ([{"role": "user", "content": "  "}], "messages"),
        ([{"role": "system", "content": "x"}], "messages"),
        ([], "messages"),
        ([{"role": "robot", "content": "x"}], "messages.0.role"),
        ("hello", "messages"),
    ],
)  # fmt: skip
def test_messages_that_are_refused(messages: Any, param: str, server: Any) -> None:
    refused = server.chat(messages=messages)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]


def test_turns_that_do_not_end_with_a_user(server: Any) -> None:
    refused = server.chat(messages=[*USER, {"role": "assistant", "content": "yes"}])
    assert refused.status_code == 400
    assert "The last turn is not the user's." in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"stream_options": 1}, "stream_options"),
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any], param: str, server: Any) -> None:
    refused = server.chat(**fields)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


def test_unknown_fields_are_ignored_and_named(server: Any) -> None:
    answer = server.chat(colour="red", mood=None)
    assert answer.status_code == 200
    assert answer.headers["x-onebase-ignored"] == "colour, mood"


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {number: -100.0 for number in range(3, 300) if number % 2}},
        {"repetition_penalty": 3.0},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"logit_bias": {2: 30.0}, "min_tokens": 7},
    ],
    ids=lambda fields: list(fields)[-1],
)
def test_bias_penalties_and_min_tokens_count(
    fields: dict[str, Any], server: Any, make_base: Callable[..., Base]
) -> None:
    engine = Engine(make_base())

    def expected(**values: Any) -> Answer:
        return engine.generate([("base", "hello")], Sampling(max_tokens=20, **values))[0]

    answer = server.chat(max_tokens=20, **fields).json()
    text, tokens = answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]
    assert (text, tokens) == (expected(**fields).text, expected(**fields).tokens)
    *_, last = fields
    without = expected(**{name: fields[name] for name in fields if name != last})
    assert (text, tokens) != (without.text, without.tokens)


def test_a_prompt_beyond_the_limit(start: Callable[..., Any]) -> None:
    server = start(limits={"prompt_tokens": 30})
    refused = server.chat(text="hello " * 40)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == "messages"
    assert server.chat(text="hello").status_code == 200


def test_fingerprints_tell_adapters_apart(server: Any) -> None:
    prints = {task: server.chat(task).json()["system_fingerprint"] for task in TASKS}
    assert len(set(prints.values())) == len(TASKS)  # support is support@2
    base = server.service.engine.base
    kernels, hashes = set(), {}
    for task, value in prints.items():
        name, precision, kernel, hashes[task] = value.split("/")
        assert name == f"{Path(base.path).name}-{base.fingerprint[:8]}"
        assert precision == "fp32"
        kernels.add(kernel)
    assert len(kernels) == 1
    assert hashes.pop("base") == "base"
    assert all(re.fullmatch("[0-9a-f]{12}", value) for value in hashes.values())
    assert server.chat("support@2").json()["system_fingerprint"] == prints["support"]
