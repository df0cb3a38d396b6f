"""POST /v1/chat/completions."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from onebase.engine.request import Event, FinishReason
from onebase.serving.answer_format import constraint_of
from onebase.serving.chat_schema import ChatRequest, other_fields, turns_of
from onebase.serving.errors import ApiError
from onebase.serving.event_stream import DONE, ChunkFrames, frame
from onebase.serving.fields import check_fields, ignored_header
from onebase.serving.json_body import JsonRoute
from onebase.serving.logprobs import chat_logprobs
from onebase.serving.prompts import chat_prompt, check_ids
from onebase.serving.routes.response import respond
from onebase.serving.sampling_fields import sampling_of_choice
from onebase.serving.sequence_group import SequenceGroup, SequenceSpec
from onebase.serving.service import Lease, Service
from onebase.serving.streaming_strip import StreamingStrip
from onebase.serving.usage import usage_of

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    service: Service = request.app.state.service
    headers = ignored_header(check_fields(body, other_fields()))
    chat = _Chat(service, body, request)
    return await respond(
        chat,
        request,
        model=body.model,
        sequences=body.n or 1,
        stream=body.stream,
        headers=headers,
    )


class _Chat:
    """A chat request: its sequences are the `n` choices."""

    def __init__(self, service: Service, body: ChatRequest, request: Request) -> None:
        self._service = service
        self._body = body
        self._choices = body.n or 1
        self._with_logprobs = body.requested_logprobs() is not None
        self._id = f"chatcmpl-{request.state.request_id}"
        self._log: dict[str, Any] = request.state.log

    async def submit(self, lease: Lease) -> SequenceGroup:
        """As Generation."""
        body = self._body
        self._texts = lease.texts
        turns = turns_of(body.messages)
        prompt = await chat_prompt(lease.task, turns, "messages")
        max_tokens = body.token_limit or self._service.settings.limits.default_tokens
        sampling = body.sampling(max_tokens, body.requested_logprobs())
        check_ids(lease.task, list(sampling.logit_bias), "logit_bias")
        constraint = constraint_of(body.response_format, "response_format.json_schema.schema")
        sampling = sampling.model_copy(update={"constraint": constraint})
        self._service.log_text(self._log, "prompt", [turn.content for turn in turns])
        specs = [
            SequenceSpec(prompt, sampling_of_choice(sampling, choice), streamed=bool(body.stream))
            for choice in range(self._choices)
        ]
        format_param = "response_format" if constraint else None
        return await lease.submit(specs, "messages", format_param=format_param)

    async def whole(self, lease: Lease, group: SequenceGroup) -> dict[str, Any]:
        """As Generation."""
        answers = await group.results()
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
            "usage": usage_of(group, 1),
        }

    async def frames(self, lease: Lease, group: SequenceGroup) -> AsyncIterator[bytes]:
        """For each choice the role, the text and the finish reason; then the usage, if requested."""
        options = self._body.stream_options
        usage = {"usage": None} if options and options.include_usage else {}
        head = {**self._head(lease, "chat.completion.chunk"), **usage}

        def chunk(
            index: int, delta: dict[str, str], logprobs: Any, reason: FinishReason | None
        ) -> Any:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            return {**head, "choices": [choice]}

        strips, text_frames = [], []
        for index in range(self._choices):
            strips.append(StreamingStrip())
            text_frames.append(ChunkFrames(chunk(index, {"content": ChunkFrames.MARK}, None, None)))
            yield frame(chunk(index, {"role": "assistant", "content": ""}, None, None))
        reasons: list[FinishReason | None] = [None] * self._choices
        try:
            async for events in group.events():
                frames = []
                for index, event in events:
                    text = strips[index].add(event.text)
                    if self._with_logprobs and event.tokens:
                        frames.append(
                            frame(chunk(index, {"content": text}, self._logprobs(event), None))
                        )
                    elif text:
                        frames.append(text_frames[index].with_text(text))
                    if event.finish_reason is not None:
                        reasons[index] = event.finish_reason
                        frames.append(frame(chunk(index, {}, None, event.finish_reason)))
                if frames:
                    yield b"".join(frames)
        except ApiError as error:
            yield frame(error.body())
            return
        self._log["finish_reason"] = reasons
        if usage:
            yield frame({**head, "choices": [], "usage": usage_of(group, 1)})
        self._service.log_text(self._log, "answer", [item.text.strip() for item in group.requests])
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
        return chat_logprobs(event.tokens, self._texts) if self._with_logprobs else None
