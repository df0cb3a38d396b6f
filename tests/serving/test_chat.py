"""POST /v1/chat/completions: shapes, streams, choices, log-probabilities, systems, refusals."""

from collections.abc import Callable
from typing import Any

import pytest

from onebase.data.example import Turn
from onebase.engine.engine import Engine
from onebase.engine.sampling import Sampling
from onebase.model.base import Base

Task = str
PATH = "/v1/chat/completions"
TASKS = ["base", "support", "support@1", "tone", "mood", "reply"]
USER = [{"role": "user", "content": "hello"}]


def test_the_whole_answer(server: Any) -> None:
    answer = server.chat("support")
    assert answer.status_code == 200
    body = answer.json()
    (choice,) = body["choices"]
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "support@2"
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    assert choice["logprobs"] is None
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] > 10
    assert answer.headers["x-request-id"] in body["id"]
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
    assert len(set(texts)) > 1
    # Each is what its own seed says.
    for place, text in enumerate(texts):
        one = server.http.post(PATH, json={**body, "n": 1, "seed": 11 + place}).json()
        assert one["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(stream: bool, server: Any) -> None:
    body = {"model": "support", "messages": USER, "max_tokens": 6, "temperature": 0}
    body |= {"logprobs": True, "top_logprobs": 3}
    if stream:
        events = server.events(PATH, **body)[:-1]
        parts = [chunk["choices"][0].get("logprobs") for chunk in events]
        content = [entry for part in parts if part for entry in part["content"]]
    else:
        content = server.http.post(PATH, json=body).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    for entry in content:
        top = [likely["logprob"] for likely in entry["top_logprobs"]]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert entry["logprob"] == top[0] <= 0  # greedy
        assert entry["token"] == entry["top_logprobs"][0]["token"]
        assert bytes(entry["bytes"]).decode(errors="replace")


def test_no_top_logprobs(server: Any) -> None:
    content = server.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in content)


def test_both_names_of_the_longest_answer(server: Any) -> None:
    for fields in ({"max_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": None}):
        body = server.chat(**fields).json()
        assert body["usage"]["completion_tokens"] == 3
        assert body["choices"][0]["finish_reason"] == "length"


def test_a_default_length(start: Callable[..., Any]) -> None:
    server = start(limits={"default_tokens": 5})
    assert server.chat(max_tokens=None).json()["usage"]["completion_tokens"] <= 5


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
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "image_url"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "role=tool"),
        ([{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}], "tool_calls"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text"),
        ([{"role": "user", "content": "  "}], "messages"),
        ([{"role": "system", "content": "x"}], "messages"),
        ([], "messages"),
        ([{"role": "robot", "content": "x"}], "messages.0.role"),
        ("hello", "messages"),
    ],
)
def test_messages_that_are_refused(messages: Any, param: str, server: Any) -> None:
    refused = server.chat(messages=messages)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param in error["param"]
    assert error["message"]


def test_turns_that_do_not_end_with_a_user(server: Any) -> None:
    refused = server.chat(messages=[*USER, {"role": "assistant", "content": "yes"}])
    assert refused.status_code == 400
    assert "user" in refused.json()["error"]["message"]


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


def test_bias_penalties_and_min_tokens_count(server: Any) -> None:
    plain = server.text()
    bias = {str(number): -100.0 for number in range(3, 300) if number % 2}
    assert server.text(logit_bias=bias) != plain
    assert server.text(repetition_penalty=3.0, max_tokens=20) != server.text(max_tokens=20)


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
    assert all("tiny-base" in value and "fp32" in value for value in prints.values())
