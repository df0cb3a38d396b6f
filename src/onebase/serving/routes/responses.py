"""POST /v1/responses, for plain text."""

from collections.abc import AsyncIterator
from itertools import count
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from onebase.engine.request import FinishReason, Token
from onebase.serving.answer_format import constraint_of
from onebase.serving.chat_schema import turns_of
from onebase.serving.errors import ApiError, unsupported
from onebase.serving.event_stream import frame
from onebase.serving.fields import check_fields, ignored_header
from onebase.serving.json_body import JsonRoute
from onebase.serving.logprobs import chat_logprobs
from onebase.serving.prompts import chat_prompt, check_ids
from onebase.serving.responses_schema import OTHER_FIELDS, ResponsesRequest
from onebase.serving.routes.response import respond
from onebase.serving.sequence_group import SequenceGroup, SequenceSpec
from onebase.serving.service import Lease
from onebase.serving.streaming_strip import StreamingStrip
from onebase.serving.usage import usage_of

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/responses")
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer a text or messages, whole or as server-sent events. Nothing is stored."""
    headers = ignored_header(check_fields(body, OTHER_FIELDS))
    if body.n not in (None, 1):
        raise unsupported("n")
    response = _Response(body, request.state.request_id)
    return await respond(
        response, request, model=body.model, sequences=1, stream=body.stream, headers=headers
    )


class _Response:
    """A request of the responses API, with one sequence."""

    def __init__(self, body: ResponsesRequest, request_id: str) -> None:
        self._body = body
        self._id = f"resp_{request_id}"
        self._item = f"msg_{request_id}"

    async def submit(self, lease: Lease) -> SequenceGroup:
        """As Generation."""
        body = self._body
        self._texts = lease.texts
        turns = turns_of(body.messages(), "input", 1 if body.instructions else 0)
        prompt = await chat_prompt(lease.task, turns, "input")
        max_tokens = body.max_output_tokens or lease.service.settings.limits.default_tokens
        sampling = body.sampling(max_tokens, body.top_logprobs or None)
        check_ids(lease.task, list(sampling.logit_bias), "logit_bias")
        constraint = constraint_of(body.response_format(), "text.format.schema")
        sampling = sampling.model_copy(update={"constraint": constraint})
        lease.log_text("prompt", [turn.content for turn in turns])
        spec = SequenceSpec(prompt, sampling, streamed=bool(body.stream))
        format_param = "text.format" if constraint else None
        return await lease.submit([spec], "input", format_param=format_param)

    async def whole(self, lease: Lease, group: SequenceGroup) -> dict[str, Any]:
        """As Generation."""
        (event,) = await group.results()
        text = event.text.strip()
        _log_answer(lease, text, event.finish_reason)
        return self._response(lease, group, text, event.tokens, event.finish_reason)

    async def frames(self, lease: Lease, group: SequenceGroup) -> AsyncIterator[bytes]:
        """The numbered events of a stream."""
        numbers = count()

        def event(kind: str, **fields: Any) -> bytes:
            return frame({"type": kind, "sequence_number": next(numbers), **fields}, kind)

        location = {"item_id": self._item, "output_index": 0, "content_index": 0}
        in_progress = self._response(lease, group, "", (), None)
        yield event("response.created", response=in_progress)
        yield event("response.in_progress", response=in_progress)
        yield event("response.output_item.added", output_index=0, item=self._message(None, ()))
        yield event("response.content_part.added", **location, part=self._part("", ()))
        strip, text = StreamingStrip(), ""
        tokens: list[Token] = []
        reason: FinishReason | None = None
        try:
            async for events in group.events():
                frames = []
                for _, arrived in events:
                    delta = strip.add(arrived.text)
                    reason = arrived.finish_reason
                    tokens += arrived.tokens
                    if delta or (self._with_logprobs and arrived.tokens):
                        text += delta
                        logprobs = self._logprobs(arrived.tokens)
                        fields = {**location, "delta": delta, "logprobs": logprobs}
                        frames.append(event("response.output_text.delta", **fields))
                if frames:
                    yield b"".join(frames)
        except ApiError as error:
            body = error.body()["error"]
            yield event("error", **{key: body[key] for key in ("code", "message", "param")})
            return
        _log_answer(lease, text, reason)
        response = self._response(lease, group, text, tokens, reason)
        logprobs = self._logprobs(tokens)
        yield event("response.output_text.done", **location, text=text, logprobs=logprobs)
        yield event("response.content_part.done", **location, part=self._part(text, tokens))
        yield event("response.output_item.done", output_index=0, item=response["output"][0])
        yield event(f"response.{response['status']}", response=response)

    def _response(
        self,
        lease: Lease,
        group: SequenceGroup,
        text: str,
        tokens: "list[Token] | tuple[Token, ...]",
        reason: FinishReason | None,
    ) -> dict[str, Any]:
        body = self._body
        usage = usage_of(group, 1)
        truncated = reason == "length"
        text_format = body.text.format if body.text else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": lease.created,
            "status": "in_progress"
            if reason is None
            else "incomplete"
            if truncated
            else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if truncated else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": lease.model,
            "system_fingerprint": lease.fingerprint,
            "output": [] if reason is None else [self._message(text, tokens, truncated=truncated)],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {
                "format": text_format.model_dump(by_alias=True, exclude_none=True)
                if text_format
                else {"type": "text"}
            },
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None
            if reason is None
            else {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
            "user": body.user,
            "metadata": body.metadata or {},
        }

    def _message(
        self,
        text: str | None,
        tokens: "list[Token] | tuple[Token, ...]",
        *,
        truncated: bool = False,
    ) -> dict[str, Any]:
        """The only item of the output. Without a text, it is in progress."""
        status = "in_progress" if text is None else "incomplete" if truncated else "completed"
        return {
            "id": self._item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [self._part(text, tokens)],
        }

    def _part(self, text: str, tokens: "list[Token] | tuple[Token, ...]") -> dict[str, Any]:
        logprobs = self._logprobs(tokens)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    @property
    def _with_logprobs(self) -> bool:
        return bool(self._body.top_logprobs)

    def _logprobs(self, tokens: "list[Token] | tuple[Token, ...]") -> list[Any]:
        if not self._with_logprobs:
            return []
        content: list[Any] = chat_logprobs(tokens, self._texts)["content"]
        return content


def _log_answer(lease: Lease, text: str, reason: FinishReason | None) -> None:
    lease.log["finish_reason"] = [reason]
    lease.log_text("answer", [text])
