"""POST /v1/responses, for plain text."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from onebase.engine.request import FinishReason, Token
from onebase.serving.answer_format import constraint_of
from onebase.serving.chat_schema import turns_of
from onebase.serving.disconnect import unless_disconnected
from onebase.serving.errors import ApiError, unsupported
from onebase.serving.event_stream import EventStream, frame
from onebase.serving.exchange import Exchange, Wanted
from onebase.serving.fields import check_fields, ignored_header
from onebase.serving.json_body import JsonRoute
from onebase.serving.logprobs import chat_logprobs
from onebase.serving.prompts import chat_prompt, check_ids
from onebase.serving.responses_schema import ResponsesRequest, other_fields
from onebase.serving.service import Lease, Service
from onebase.serving.trimmed import Trimmed
from onebase.serving.usage import usage_of

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/responses")
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Answer a text or messages, whole or as a stream of events. Nothing is stored."""
    service: Service = request.app.state.service
    headers = ignored_header(check_fields(body, other_fields()))
    if body.n not in (None, 1):
        raise unsupported("n")
    made = _Response(service, body, request)
    return await unless_disconnected(request.receive, made.respond(headers))


class _Response:
    """One request on its way to an answer."""

    def __init__(self, service: Service, body: ResponsesRequest, request: Request) -> None:
        self._service = service
        self._body = body
        self._id = f"resp_{request.state.request_id}"
        self._item = f"msg_{request.state.request_id}"
        self._log: dict[str, Any] = request.state.log

    async def respond(self, headers: dict[str, str]) -> Response:
        """The answer, or the beginning of its stream."""
        async with AsyncExitStack() as stack:
            lease = await stack.enter_async_context(
                self._service.lease(self._body.model, 1, self._log)
            )
            exchange = await self._ask(lease)
            if self._body.stream:
                return EventStream(self._frames(lease, exchange), stack.pop_all(), headers)
            (event,) = await exchange.whole()
            text = event.text.strip()
            self._note(text, event.finish_reason)
            whole = self._response(lease, exchange, text, event.tokens, event.finish_reason)
            return JSONResponse(whole, headers=headers)

    async def _ask(self, lease: Lease) -> Exchange:
        body = self._body
        self._texts = lease.texts
        turns = turns_of(body.messages(), "input", 1 if body.instructions else 0)
        prompt = await chat_prompt(lease.task, turns, "input")
        longest = body.max_output_tokens or self._service.settings.limits.default_tokens
        sampling = body.sampling(longest, body.top_logprobs or None)
        check_ids(lease.task, list(sampling.logit_bias), "logit_bias")
        constraint = constraint_of(body.response_format(), "text.format")
        sampling = sampling.model_copy(update={"constraint": constraint})
        self._service.log_text(self._log, "prompt", [turn.content for turn in turns])
        wanted = Wanted(prompt, sampling, streamed=bool(body.stream))
        form = "text.format" if constraint else None
        return await lease.ask([wanted], "input", form=form)

    async def _frames(self, lease: Lease, exchange: Exchange) -> AsyncIterator[bytes]:
        """The events of a stream in their order, numbered."""
        numbers = count()

        def event(kind: str, **fields: Any) -> bytes:
            return frame({"type": kind, "sequence_number": next(numbers), **fields}, kind)

        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        begun = self._response(lease, exchange, "", (), None)
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        yield event("response.output_item.added", output_index=0, item=self._message(None, ()))
        yield event("response.content_part.added", **place, part=self._part("", ()))
        trimmed, text = Trimmed(), ""
        tokens: list[Token] = []
        reason: FinishReason | None = None
        try:
            async for pieces in exchange.pieces():
                frames = []
                for _, arrived in pieces:
                    added = trimmed.add(arrived.text)
                    reason = arrived.finish_reason
                    tokens += arrived.tokens
                    if added or (self._reported and arrived.tokens):
                        text += added
                        logprobs = self._logprobs(arrived.tokens)
                        frames.append(
                            event(
                                "response.output_text.delta",
                                **place,
                                delta=added,
                                logprobs=logprobs,
                            )
                        )
                if frames:
                    yield b"".join(frames)
        except ApiError as failure:
            told = failure.body()["error"]
            yield event("error", **{key: told[key] for key in ("code", "message", "param")})
            return
        self._note(text, reason)
        whole = self._response(lease, exchange, text, tokens, reason)
        logprobs = self._logprobs(tokens)
        yield event("response.output_text.done", **place, text=text, logprobs=logprobs)
        yield event("response.content_part.done", **place, part=self._part(text, tokens))
        yield event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield event(f"response.{whole['status']}", response=whole)

    def _note(self, text: str, reason: FinishReason | None) -> None:
        self._log["finish_reason"] = [reason]
        self._service.log_text(self._log, "answer", [text])

    def _response(
        self,
        lease: Lease,
        exchange: Exchange,
        text: str,
        tokens: "list[Token] | tuple[Token, ...]",
        reason: FinishReason | None,
    ) -> dict[str, Any]:
        body = self._body
        usage = usage_of(exchange, 1)
        cut = reason == "length"
        form = body.text.format if body.text else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": lease.created,
            "status": "in_progress" if reason is None else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": lease.model,
            "system_fingerprint": lease.fingerprint,
            "output": [] if reason is None else [self._message(text, tokens, cut=cut)],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {
                "format": form.model_dump(by_alias=True, exclude_none=True)
                if form
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
        self, text: str | None, tokens: "list[Token] | tuple[Token, ...]", *, cut: bool = False
    ) -> dict[str, Any]:
        """The one item of the output; without a text it has only begun."""
        status = "in_progress" if text is None else "incomplete" if cut else "completed"
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
    def _reported(self) -> bool:
        return bool(self._body.top_logprobs)

    def _logprobs(self, tokens: "list[Token] | tuple[Token, ...]") -> list[Any]:
        if not self._reported:
            return []
        content: list[Any] = chat_logprobs(tokens, self._texts)["content"]
        return content
