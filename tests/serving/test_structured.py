"""Answers that must be JSON, or a value of a JSON schema."""

import json
from typing import Any

import pytest

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["small", "large"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}


def as_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}


VALUES = [{"ok": ok, "size": size} for ok in (True, False) for size in ("small", "large")]


@pytest.mark.parametrize("task", ["base", "support", "mood"])
def test_a_schema_holds(task: str, server: Any) -> None:
    text = server.text(task, response_format=as_schema(SCHEMA), max_tokens=200, temperature=1.0)
    assert json.loads(text) in VALUES


def test_a_schema_in_the_responses_api(server: Any) -> None:
    form = {"type": "json_schema", "name": "reply", "schema": SCHEMA}
    request_body = {"model": "support", "input": "hello", "max_output_tokens": 200}
    body = server.http.post("/v1/responses", json={**request_body, "text": {"format": form}}).json()
    assert json.loads(body["output"][0]["content"][0]["text"]) in VALUES


def test_any_object(server: Any) -> None:
    # A random model never closes it by itself: a bias towards the brace does.
    tokenizer = server.service.engine.base.tokenizer
    (brace,) = tokenizer("}", add_special_tokens=False)["input_ids"]
    fields = {"logit_bias": {str(brace): 100}, "max_tokens": 100}
    assert json.loads(server.text("base", response_format={"type": "json_object"}, **fields)) == {}


def test_text_is_any_text(server: Any) -> None:
    assert server.text(response_format={"type": "text"}) == server.text()


@pytest.mark.parametrize(
    "schema",
    [{"type": "nothing"}, {"type": "object", "properties": 3}, {"pattern": "(", "type": "string"}],
)
def test_a_schema_that_is_none(schema: Any, server: Any) -> None:
    refused = server.chat(response_format=as_schema(schema))
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == "response_format"


def test_a_stream_of_json(server: Any) -> None:
    request_body = {"model": "base", "messages": [{"role": "user", "content": "hello"}]}
    request_body |= {"max_tokens": 200, "response_format": as_schema(SCHEMA)}
    chunks = server.events("/v1/chat/completions", **request_body)[:-1]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert json.loads(text) in VALUES
