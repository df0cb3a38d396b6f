"""Requests that are odd, huge or never read: an error that names the field, and nobody else notices."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.adapters.store import AdapterStore
from onebase.serving import event_stream
from onebase.serving.routes.classify import ClassifyRequest

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


def refused(server: Any, path: str = CHAT, **fields: Any) -> tuple[int, str | None]:
    """The status and the field that the error names."""
    body = {"model": "base", "max_tokens": 4, **fields}
    if path == CHAT:
        body.setdefault("messages", MESSAGES)
    if path == "/v1/responses":
        del body["max_tokens"]
        body.setdefault("input", "hello")
    # ASCII, so that halves of characters arrive as JSON spells them.
    answer = server.http.post(
        path, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    return answer.status_code, answer.json().get("error", {}).get("param")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"repetition_penalty": 1e-46}, "repetition_penalty"),
        (CHAT, {"logit_bias": {str(at): 1 for at in range(1025)}}, "logit_bias"),
        (CHAT, {"metadata": {"a": "\ud800"}}, "metadata.a"),
        (CHAT, {"metadata": {"a": 5}}, "metadata.a"),
        (CHAT, {"model": "m" * 257}, "model"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (CHAT, {"stop": 5}, "stop"),
        (CHAT, {"stop": [""]}, "stop"),
        ("/v1/responses", {"n": 2}, "n"),
        (
            "/v1/responses",
            {"text": {"format": {"type": "text", "grammar": "x"}}},
            "text.format.grammar",
        ),
        (
            "/v1/responses",
            {"text": {"format": {"type": "text", "description": "\ud800"}}},
            "text.format.description",
        ),
        (
            "/v1/responses",
            {
                "instructions": "Be kind.",
                "input": [{"role": "user", "content": [{"type": "image"}]}],
            },
            "input.0.content.0.type=image",
        ),
    ],
)
def test_the_error_names_the_field(
    path: str, fields: dict[str, Any], param: str, server: Any
) -> None:
    assert refused(server, path, **fields) == (400, param)


def posted(server: Any, path: str, content: str) -> Any:
    return server.http.post(
        path, content=content.encode(), headers={"Content-Type": "application/json"}
    )


@pytest.mark.parametrize(
    ("path", "content", "param"),
    [
        (CHAT, '{"model": "base", "messages": [], "model": "support"}', "model"),
        (CHAT, '{"model": "base", "messages": [{"role": "user", "content": "a", "content": "b"}]}',
         "messages.0.content"),
        (CHAT, '{"model": "base", "metadata": {"a": "1", "b": "2", "a": "3"}}', "metadata.a"),
        (CHAT, '{"stop": {"x": {"y": 1, "y": 2}}, "stop": []}', "stop"),
        ("/v1/completions", '{"model": "base", "prompt": "a", "prompt": "b"}', "prompt"),
        ("/v1/responses", '{"model": "base", "input": "a", "text": {"format": {"type": "text",'
         ' "type": "json_object"}}}', "text.format.type"),
        ("/v1/classify", '{"model": "mood", "input": "a", "labels": ["x"], "labels": ["y"]}',
         "labels"),
        ("/v1/adapters", '{"task": "support", "task": "tone"}', "task"),
        ("/v1/adapters/support/promote", '{"version": 1, "version": 2}', "version"),
    ],
)  # fmt: skip
def test_a_key_that_stands_twice_is_refused(
    path: str, content: str, param: str, server: Any
) -> None:
    answer = posted(server, path, content)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert param in answer.json()["error"]["message"]
    assert "twice" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/classify"])
@pytest.mark.parametrize("opened", ["[", '{"a": '])
def test_a_body_that_is_nested_too_deep_is_refused(path: str, opened: str, server: Any) -> None:
    expected = server.text()
    for content in (opened * 200_000, f'{{"model": "base", "metadata": {opened * 200_000}'):
        answer = posted(server, path, content)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "invalid_body"
        assert "nested too deep" in answer.json()["error"]["message"]
    assert server.text() == expected


def test_the_largest_top_k_cuts_nothing(server: Any) -> None:
    drawn = {"temperature": 2.0, "seed": 3}
    assert server.text(**drawn, top_k=1 << 64) == server.text(**drawn)
    assert server.text(**drawn, top_k=1) == server.text() != server.text(**drawn)


def test_nulls_inside_reasoning_ask_for_nothing(server: Any) -> None:
    assert server.chat(reasoning={"effort": None, "summary": None}).status_code == 200
    refused = server.chat(reasoning={"effort": "high"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reasoning")


def test_unknown_fields_inside_others_are_named(server: Any) -> None:
    messages = [{"role": "user", "content": "hello", "prefix": True}]
    answer = server.chat(messages=messages, stream_options={"continuous_usage_stats": True})
    named = answer.headers["x-onebase-ignored"].split(", ")
    assert sorted(named) == ["messages.0.prefix", "stream_options.continuous_usage_stats"]


def test_a_field_without_a_name_is_named_too(server: Any) -> None:
    # A header's value ends in no blank: the server broke the connection here.
    answer = server.chat(**{"0": 1, "": 1})
    assert answer.status_code == 200
    assert answer.headers["x-onebase-ignored"] == '0, ""'


def test_an_error_in_a_stream_of_responses_has_the_type_error(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()

    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(
        type(server.service.engine._batch(server.service.engine.base).runner), "run", broken
    )
    *_, last = server.events("/v1/responses", model="base", input="hello")
    assert last["type"] == "error"
    assert last["code"] == "internal_error"


def test_scores_of_one_prompt_come_while_another_is_read(server: Any) -> None:
    prompts = ["hi", "hello " * 900]
    events = server.events(
        "/v1/completions", model="base", prompt=prompts, echo=True, logprobs=0, max_tokens=3
    )
    assert events[-1] == "[DONE]"
    ends = {
        event["choices"][0]["index"]: event["choices"][0]["finish_reason"]
        for event in events[:-1]
        if event["choices"][0]["finish_reason"]
    }
    assert ends == {0: "length", 1: "length"}
    places = [event["choices"][0]["index"] for event in events[:-1]]
    assert places == sorted(places)  # the short prompt's answer does not wait for the long one's


def test_many_texts_and_labels_are_asked_one_text_at_a_time(server: Any) -> None:
    labels = [f"label {at}" for at in range(40)]
    body = ClassifyRequest(model="base", input=["hello", "you", "there"], labels=labels)
    answer = server.http.post("/v1/classify", json=body.model_dump())
    assert answer.status_code == 200
    assert [len(item["labels"]) for item in answer.json()["data"]] == [40, 40, 40]


def test_a_client_that_stops_reading_gives_its_places_back(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "STALLED_SECONDS", 0.5)
    server = start(slots=16)
    body = json.dumps(
        {
            "model": "base",
            "messages": MESSAGES,
            "stream": True,
            "n": 16,
            "max_tokens": 4000,
            "logprobs": True,
            "top_logprobs": 20,
            "logit_bias": {"2": -100},
        }
    ).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        end = time.monotonic() + 60
        while server.service.admission.sequences == 0:
            assert time.monotonic() < end
            time.sleep(0.01)
        while server.service.admission.sequences:
            assert time.monotonic() < end, "it holds its places"
            time.sleep(0.05)
    assert server.chat().status_code == 200


@pytest.mark.parametrize(
    ("damage", "status"),
    [({"labels": 5}, 500), ({"template": {"kind": 5}}, 500), ({"metrics": [1]}, 200), ({"options": 3}, 200)],
)  # fmt: skip
def test_a_record_that_was_edited_is_an_error_naming_the_adapter(
    damage: dict[str, Any], status: int, own_server: Any, store: AdapterStore
) -> None:
    """If what was edited is needed for an answer; otherwise the answer stays the same."""
    server = own_server
    expected = server.text("mood")
    item = store.get("mood")
    file = Path(item.path) / "onebase.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**record, **damage}), encoding="utf-8")
    answer = server.chat("mood")
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["choices"][0]["message"]["content"] == expected
    else:
        assert answer.json()["error"]["code"] == "adapter_not_loadable"
        assert "mood@1" in answer.json()["error"]["message"]
    for path in ("/v1/models", "/v1/adapters"):
        assert server.http.get(path).status_code == 200
    assert server.chat().status_code == 200


def test_the_key_that_stands_twice_is_found_among_many(server: Any) -> None:
    """A search for each key would take minutes; a path for each item would take gigabytes."""
    many = ", ".join(f'"k{n}": 1' for n in range(150_000))
    answer = posted(server, CHAT, f'{{"model": "base", "metadata": {{{many}, "k149999": 2}}}}')
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata.k149999")
    deep = "[" * 800 + '{"a": 1, "a": 2}' + ", 1" * 100_000 + "]" * 800
    answer = posted(server, CHAT, f'{{"model": "base", "metadata": {deep}}}')
    assert answer.status_code == 400
    # The path, cut after 200 characters.
    assert answer.json()["error"]["param"] == ("metadata" + ".0" * 800)[:200]


@pytest.mark.parametrize("key", ["\\ud800", "x\\udfff", "k" * 100_000])
def test_a_key_that_no_answer_can_hold_is_named_in_part(key: str, server: Any) -> None:
    answer = posted(server, CHAT, f'{{"model": "base", "{key}": 1, "{key}": 2}}')
    assert answer.status_code == 400, answer.text
    assert "twice" in answer.json()["error"]["message"]
    param = answer.json()["error"]["param"]
    assert param == key[:200]
    assert answer.json()["error"]["message"].count(param) == 1
    assert len(answer.json()["error"]["message"]) < len(param) + 100
