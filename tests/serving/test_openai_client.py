"""The `openai` client as it is: sync, async, streams, parsed answers, errors."""

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

USER: Any = [{"role": "user", "content": "hello"}]
GREEDY: Any = {"temperature": 0, "max_tokens": 8}


class Reply(BaseModel):
    ok: bool
    size: Literal["small", "large"]


@pytest.fixture
def client(server: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai:
        yield openai


def test_chat(client: OpenAI, server: Any) -> None:
    expected = server.text("support")
    whole = client.chat.completions.create(model="support", messages=USER, **GREEDY)
    assert whole.choices[0].message.content == expected
    assert whole.model == "support@2"
    stream = client.chat.completions.create(
        model="support",
        messages=USER,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(deltas) == expected
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    # The helper takes no answer that was cut off.
    with client.chat.completions.stream(
        model="support", messages=USER, stop=expected[3], **GREEDY
    ) as events:
        final = events.get_final_completion()
    assert final.choices[0].message.content == expected[:3].strip()


def test_asynchronous(server: Any) -> None:
    expected = server.text("tone")

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    model="tone", messages=USER, stream=True, **GREEDY
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one() for _ in range(6)))

    assert set(asyncio.run(ask())) == {expected}


def test_parsed(client: OpenAI) -> None:
    completion = client.chat.completions.parse(
        model="support", messages=USER, response_format=Reply, max_tokens=200
    )
    assert isinstance(completion.choices[0].message.parsed, Reply)
    response = client.responses.parse(
        model="support", input="hello", text_format=Reply, max_output_tokens=200
    )
    assert isinstance(response.output_parsed, Reply)


def test_completions_and_responses(client: OpenAI, server: Any) -> None:
    completion = client.completions.create(
        model="base", prompt="the parcel", logprobs=2, echo=True, **GREEDY
    )
    body = {"model": "base", "prompt": "the parcel", "logprobs": 2, "echo": True, **GREEDY}
    (choice,) = server.http.post("/v1/completions", json=body).json()["choices"]
    assert completion.choices[0].text == choice["text"]
    assert choice["text"].startswith("the parcel")
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.model_dump() == choice["logprobs"]
    expected = server.text("support")
    body: Any = {"model": "support", "input": "hello", "temperature": 0, "max_output_tokens": 8}
    assert client.responses.create(**body).output_text == expected
    with client.responses.stream(**body, extra_body={"stop": expected[3]}) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(deltas) == expected[:3].strip()


def test_models_and_extra_fields(client: OpenAI, server: Any) -> None:
    versions = [f"{task}@1" for task in ("mood", "reply", "support", "tone")]
    names = ["base", "mood", "reply", "support", "support@2", "tone", *versions]
    assert sorted(model.id for model in client.models.list()) == sorted(names)
    assert client.models.retrieve("support@1").id == "support@1"
    drawn: Any = {"max_tokens": 20, "temperature": 2.0, "seed": 1}
    texts = {server.text(**drawn)}
    for extra in ({"top_k": 2}, {"min_p": 0.2}, {"repetition_penalty": 3.0}):
        completion = client.chat.completions.create(
            model="base", messages=USER, extra_body=extra, **drawn
        )
        text = completion.choices[0].message.content
        assert text == server.text(**drawn, **extra)
        texts.add(text)
    assert len(texts) == 4


def test_errors_have_their_types(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="suport") as missing:
        client.chat.completions.create(model="suport", messages=USER)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="base", messages=USER, temperature=5)
    assert bad.value.param == "temperature"
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model="base", messages=USER, tools=[tool])
