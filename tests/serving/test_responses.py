"""POST /v1/responses: the response, its stream, what is refused."""

from typing import Any

import pytest

PATH = "/v1/responses"


def respond(server: Any, **fields: Any) -> Any:
    body = {"model": "support", "input": "hello", "max_output_tokens": 8, "temperature": 0}
    answer = server.http.post(PATH, json={**body, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_response(server: Any) -> None:
    body = respond(server, metadata={"a": "b"}, user="me", store=True)
    (item,) = body["output"]
    (part,) = item["content"]
    assert (body["object"], item["type"], part["type"]) == ("response", "message", "output_text")
    assert body["model"] == "support@2"
    assert part["text"] == server.text("support")
    assert body["usage"]["output_tokens"] == 8
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (body["metadata"], body["user"], body["store"]) == ({"a": "b"}, "me", False)
    usage = server.chat("support").json()["usage"]
    names = ("input_tokens", "output_tokens", "total_tokens")
    assert [body["usage"][name] for name in names] == list(usage.values())


def test_an_answer_that_ends_by_itself(server: Any) -> None:
    body = respond(server, logit_bias={"2": 100})
    assert body["usage"]["output_tokens"] == 0
    assert (body["status"], body["incomplete_details"]) == ("completed", None)


def test_messages_and_instructions_are_a_chats(server: Any) -> None:
    messages = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "yes"}]},
        {"type": "message", "role": "user", "content": "how are you?"},
    ]
    body = respond(server, input=messages, instructions="Be brief.")
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "how are you?"},
    ]
    assert body["output"][0]["content"][0]["text"] == server.text("support", messages=chat)


def test_the_stream(server: Any) -> None:
    whole = respond(server)
    body = {"model": "support", "input": "hello", "max_output_tokens": 8, "temperature": 0}
    events = server.events(PATH, **body)
    kinds = [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{whole['status']}",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    text = "".join(event["delta"] for event in events[4:-4])
    assert text == events[-4]["text"] == whole["output"][0]["content"][0]["text"]
    assert events[-1]["response"]["usage"] == whole["usage"]
    with server.http.stream("POST", PATH, json={**body, "stream": True}) as stream:
        named = [line for line in stream.iter_lines() if line.startswith("event: ")]
    assert named == [f"event: {kind}" for kind in kinds]


def test_logprobs(server: Any) -> None:
    body = respond(server, top_logprobs=2)
    entries = body["output"][0]["content"][0]["logprobs"]
    chat = server.chat("support", logprobs=True, top_logprobs=2).json()["choices"][0]
    assert len(entries) == body["usage"]["output_tokens"] == 8
    assert entries == chat["logprobs"]["content"]
    assert {len(entry["top_logprobs"]) for entry in entries} == {2}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        (
            {"input": [{"type": "function_call_output", "output": "x"}]},
            "input.0.type=function_call_output",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0.type=input_image",
        ),
        ({"input": []}, "input"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str, server: Any) -> None:
    refused = server.http.post(PATH, json={"model": "base", "input": "hello", **fields})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param


def test_neutral_values_pass(server: Any) -> None:
    neutral = {
        "previous_response_id": None,
        "tools": [],
        "tool_choice": "auto",
        "truncation": "disabled",
        "include": [],
        "reasoning": {"effort": None},
        "background": False,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
    }
    texts = [item["output"][0]["content"] for item in (respond(server, **neutral), respond(server))]
    assert texts[0] == texts[1]
