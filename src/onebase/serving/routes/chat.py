"""POST /v1/chat/completions."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from onebase.engine.request import Event, FinishReason
from onebase.serving.answer_format import constraint_of
from onebase.serving.chat_schema import ChatRequest, other_fields, turns_of
from onebase.serving.disconnect import unless_disconnected
from onebase.serving.errors import ApiError
from onebase.serving.event_stream import DONE, ChunkFrames, EventStream, frame
from onebase.serving.exchange import Exchange, Wanted
from onebase.serving.fields import check_fields, ignored_header
from onebase.serving.json_body import JsonRoute
from onebase.serving.logprobs import chat_logprobs
from onebase.serving.prompts import chat_prompt, check_ids
from onebase.serving.sampling_fields import seeded
from onebase.serving.service import Lease, Service
from onebase.serving.trimmed import Trimmed
from onebase.serving.usage import usage_of

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, whole or as a stream of server-sent events."""
    service: Service = request.app.state.service
    headers = ignored_header(check_fields(body, other_fields()))
    chat = _Chat(service, body, request)
    return await unless_disconnected(request.receive, chat.respond(headers))


class _Chat:
    """One request on its way to an answer."""

    def __init__(self, service: Service, body: ChatRequest, request: Request) -> None:
        self._service = service
        self._body = body
        self._choices = body.n or 1
        self._reported = body.wanted_logprobs() is not None
        self._id = f"chatcmpl-{request.state.request_id}"
        self._log: dict[str, Any] = request.state.log

    async def respond(self, headers: dict[str, str]) -> Response:
        """The answer, or the beginning of its stream."""
        async with AsyncExitStack() as stack:
            lease = await stack.enter_async_context(
                self._service.lease(self._body.model, self._choices, self._log)
            )
            exchange = await self._ask(lease)
            if self._body.stream:
                frames = self._frames(lease, exchange)
                return EventStream(frames, stack.pop_all(), headers)
            return JSONResponse(await self._whole(lease, exchange), headers=headers)

    async def _ask(self, lease: Lease) -> Exchange:
        body = self._body
        self._texts = lease.texts
        turns = turns_of(body.messages)
        prompt = await chat_prompt(lease.task, turns, "messages")
        longest = body.wanted_tokens or self._service.settings.limits.default_tokens
        sampling = body.sampling(longest, body.wanted_logprobs())
        check_ids(lease.task, list(sampling.logit_bias), "logit_bias")
        constraint = constraint_of(body.response_format, "response_format")
        sampling = sampling.model_copy(update={"constraint": constraint})
        self._service.log_text(self._log, "prompt", [turn.content for turn in turns])
        wanted = [
            Wanted(prompt, seeded(sampling, choice), streamed=bool(body.stream))
            for choice in range(self._choices)
        ]
        form = "response_format" if constraint else None
        return await lease.ask(wanted, "messages", form=form)

    async def _whole(self, lease: Lease, exchange: Exchange) -> dict[str, Any]:
        answers = await exchange.whole()
        texts = [event.text.strip() for event in answers]
        self._service.log_text(self._log, "answer", texts)
        self._log["finish_reason"] = [event.finish_reason for event in answers]
        return {
            **self._head(lease, "chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": self._logprobs(event),
                    "finish_reason": event.finish_reason,
                }
                for index, (event, text) in enumerate(zip(answers, texts, strict=True))
            ],
            "usage": usage_of(exchange, 1),
        }

    async def _frames(self, lease: Lease, exchange: Exchange) -> AsyncIterator[bytes]:
        """The stream: a role, the text, an end for each choice; then the usage, if it was asked for."""
        options = self._body.stream_options
        usage = {"usage": None} if options and options.include_usage else {}
        head = {**self._head(lease, "chat.completion.chunk"), **usage}

        def chunk(
            index: int, delta: dict[str, str], logprobs: Any, reason: FinishReason | None
        ) -> Any:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            return {**head, "choices": [choice]}

        texts, plain = [], []
        for index in range(self._choices):
            texts.append(Trimmed())
            plain.append(ChunkFrames(chunk(index, {"content": ChunkFrames.MARK}, None, None)))
            yield frame(chunk(index, {"role": "assistant", "content": ""}, None, None))
        reasons: list[FinishReason | None] = [None] * self._choices
        try:
            async for pieces in exchange.pieces():
                frames = []
                for index, event in pieces:
                    text = texts[index].add(event.text)
                    if self._reported and event.tokens:
                        frames.append(
                            frame(chunk(index, {"content": text}, self._logprobs(event), None))
                        )
                    elif text:
                        frames.append(plain[index].with_text(text))
                    if event.finish_reason is not None:
                        reasons[index] = event.finish_reason
                        frames.append(frame(chunk(index, {}, None, event.finish_reason)))
                if frames:
                    yield b"".join(frames)
        except ApiError as failure:
            yield frame(failure.body())
            return
        self._log["finish_reason"] = reasons
        if usage:
            yield frame({**head, "choices": [], "usage": usage_of(exchange, 1)})
        self._service.log_text(
            self._log, "answer", [item.text.strip() for item in exchange.requests]
        )
        yield DONE

    def _head(self, lease: Lease, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": lease.created,
            "model": lease.model,
            "system_fingerprint": lease.fingerprint,
        }

    def _logprobs(self, event: Event) -> dict[str, Any] | None:
        return chat_logprobs(event.tokens, self._texts) if self._reported else None
