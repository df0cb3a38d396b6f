"""POST /v1/chat/completions."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from onebase.engine.request import Event, FinishReason
from onebase.serving.answer_format import constraint_of
from onebase.serving.chat_schema import OTHER_FIELDS, ChatRequest, turns_of
from onebase.serving.errors import ApiError
from onebase.serving.event_stream import DONE, ChunkFrames, frame
from onebase.serving.fields import check_fields, ignored_header
from onebase.serving.json_body import JsonRoute
from onebase.serving.logprobs import chat_logprobs
from onebase.serving.prompts import chat_prompt, check_ids
from onebase.serving.routes.response import respond
from onebase.serving.sampling_fields import sampling_of_choice
from onebase.serving.sequence_group import SequenceGroup, SequenceSpec
from onebase.serving.service import Lease
from onebase.serving.streaming_strip import StreamingStrip
from onebase.serving.usage import usage_of

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    headers = ignored_header(check_fields(body, OTHER_FIELDS))
    return await respond(
        _Chat(body, request.state.request_id),
        request,
        model=body.model,
        sequences=body.n or 1,
        stream=body.stream,
        headers=headers,
    )


class _Chat:
    """A chat request: its sequences are the `n` choices."""

    def __init__(self, body: ChatRequest, request_id: str) -> None:
        self._body = body
        self._choices = body.n or 1
        self._with_logprobs = body.requested_logprobs() is not None
        self._id = f"chatcmpl-{request_id}"

    async def submit(self, lease: Lease) -> SequenceGroup:
        """As Generation."""
        body = self._body
        self._texts = lease.texts
        turns = turns_of(body.messages)
        prompt = await chat_prompt(lease.task, turns, "messages")
        max_tokens = body.token_limit or lease.service.settings.limits.default_tokens
        sampling = body.sampling(max_tokens, body.requested_logprobs())
        check_ids(lease.task, list(sampling.logit_bias), "logit_bias")
        constraint = constraint_of(body.response_format, "response_format.json_schema.schema")
        sampling = sampling.model_copy(update={"constraint": constraint})
        lease.log_text("prompt", [turn.content for turn in turns])
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
        lease.log_text("answer", texts)
        lease.log["finish_reason"] = [event.finish_reason for event in answers]
        return {
            **lease.head(self._id, "chat.completion"),
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
        head = {**lease.head(self._id, "chat.completion.chunk"), **usage}

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
        lease.log["finish_reason"] = reasons
        if usage:
            yield frame({**head, "choices": [], "usage": usage_of(group, 1)})
        lease.log_text("answer", [item.text.strip() for item in group.requests])
        yield DONE

    def _logprobs(self, event: Event) -> dict[str, Any] | None:
        return chat_logprobs(event.tokens, self._texts) if self._with_logprobs else None
