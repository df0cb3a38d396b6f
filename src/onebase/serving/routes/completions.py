"""POST /v1/completions."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from onebase.engine.request import Event, FinishReason, Token
from onebase.serving.completion_schema import DEFAULT_TOKENS, CompletionRequest, other_fields
from onebase.serving.disconnect import unless_disconnected
from onebase.serving.errors import ApiError
from onebase.serving.event_stream import DONE, ChunkFrames, EventStream, frame
from onebase.serving.exchange import Exchange, Wanted, require_scores
from onebase.serving.fields import check_fields, ignored_header
from onebase.serving.json_body import JsonRoute
from onebase.serving.logprobs import TextOffsets, completion_logprobs
from onebase.serving.prompts import check_ids, text_prompt
from onebase.serving.sampling_fields import seeded
from onebase.serving.service import Lease, Service
from onebase.serving.usage import usage_of

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Go on from bare prompts, with no template around them."""
    service: Service = request.app.state.service
    headers = ignored_header(check_fields(body, other_fields(body)))
    completion = _Completion(service, body, request)
    return await unless_disconnected(request.receive, completion.respond(headers))


class _Completion:
    """One request on its way. Its sequences are the answers to the first prompt, then to the next."""

    def __init__(self, service: Service, body: CompletionRequest, request: Request) -> None:
        self._service = service
        self._body = body
        self._prompts = body.prompts()
        self._choices = body.n or 1
        self._id = f"cmpl-{request.state.request_id}"
        self._log: dict[str, Any] = request.state.log
        self._echoed: list[str] = []

    async def respond(self, headers: dict[str, str]) -> Response:
        """The answer, or the beginning of its stream."""
        sequences = len(self._prompts) * self._choices
        async with AsyncExitStack() as stack:
            lease = await stack.enter_async_context(
                self._service.lease(self._body.model, sequences, self._log)
            )
            exchange = await self._ask(lease)
            if self._body.stream:
                frames = self._frames(lease, exchange)
                return EventStream(frames, stack.pop_all(), headers)
            return JSONResponse(await self._whole(lease, exchange), headers=headers)

    async def _ask(self, lease: Lease) -> Exchange:
        body = self._body
        self._texts = lease.texts
        longest = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        sampling = body.sampling(max(1, longest), body.logprobs)
        check_ids(lease.task, list(sampling.logit_bias), "logit_bias")
        scored = bool(body.echo) and body.logprobs is not None
        wanted = []
        for place, given in enumerate(self._prompts):
            prompt = await text_prompt(lease.task, given, f"prompt.{place}")
            self._echoed.append(self._echo(lease, given))
            for choice in range(self._choices):
                own = seeded(sampling, place * self._choices + choice)
                wanted.append(
                    Wanted(
                        prompt,
                        own,
                        0 if scored else None,
                        score_only=longest == 0,
                        streamed=bool(body.stream),
                    )
                )
        self._service.log_text(self._log, "prompt", self._echoed or self._prompts)
        return await lease.ask(wanted, "prompt")

    def _echo(self, lease: Lease, given: str | list[int]) -> str:
        """What stands before an answer."""
        if not self._body.echo:
            return ""
        if isinstance(given, str):
            return given
        text: str = lease.task.base.tokenizer.decode(given, skip_special_tokens=False)
        return text

    async def _whole(self, lease: Lease, exchange: Exchange) -> dict[str, Any]:
        answers = await exchange.whole()
        for own in exchange.requests:
            require_scores(own)
        self._log["finish_reason"] = [event.finish_reason for event in answers]
        texts = [self._echo_of(index) + event.text for index, event in enumerate(answers)]
        self._service.log_text(self._log, "answer", texts)
        return {
            **self._head(lease),
            "choices": [
                {
                    "index": index,
                    "text": text,
                    "logprobs": self._logprobs(
                        [*self._scored(event), *event.tokens], self._offsets()
                    ),
                    "finish_reason": event.finish_reason,
                }
                for index, (event, text) in enumerate(zip(answers, texts, strict=True))
            ],
            "usage": usage_of(exchange, len(self._prompts)),
        }

    async def _frames(self, lease: Lease, exchange: Exchange) -> AsyncIterator[bytes]:
        """The stream: the echo if there is one, the text, an end for each choice."""
        options = self._body.stream_options
        usage = {"usage": None} if options and options.include_usage else {}
        head = {**self._head(lease), **usage}

        def chunk(index: int, text: str, logprobs: Any, reason: FinishReason | None) -> Any:
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
            return {**head, "choices": [choice]}

        sequences = len(exchange.requests)
        plain = [ChunkFrames(chunk(i, ChunkFrames.MARK, None, None)) for i in range(sequences)]
        offsets = [self._offsets() for _ in range(sequences)]
        begun = [not self._body.echo] * sequences
        reasons: list[FinishReason | None] = [None] * sequences
        try:
            async for pieces in exchange.pieces():
                frames = []
                for index, event in pieces:
                    text, tokens = event.text, list(event.tokens)
                    if not begun[index]:
                        begun[index] = True
                        require_scores(event.request)
                        text = self._echo_of(index) + text
                        tokens = [*self._scored(event), *tokens]
                    logprobs = self._logprobs(tokens, offsets[index])
                    reasons[index] = event.finish_reason
                    if event.finish_reason is None and logprobs is None:
                        if text:
                            frames.append(plain[index].with_text(text))
                    else:
                        frames.append(frame(chunk(index, text, logprobs, event.finish_reason)))
                if frames:
                    yield b"".join(frames)
        except ApiError as failure:
            yield frame(failure.body())
            return
        self._log["finish_reason"] = reasons
        if usage:
            whole = usage_of(exchange, len(self._prompts))
            yield frame({**head, "choices": [], "usage": whole})
        self._service.log_text(self._log, "answer", [item.text for item in exchange.requests])
        yield DONE

    def _echo_of(self, index: int) -> str:
        return self._echoed[index // self._choices]

    def _scored(self, event: Event) -> list[Token]:
        """The prompt's tokens where it is echoed with log-probabilities."""
        return event.request.prompt_logprobs if self._body.echo else []

    def _offsets(self) -> TextOffsets:
        return TextOffsets(self._texts)

    def _logprobs(self, tokens: list[Token], offsets: TextOffsets) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        return completion_logprobs(tokens, self._texts, offsets)

    def _head(self, lease: Lease) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": lease.created,
            "model": lease.model,
            "system_fingerprint": lease.fingerprint,
        }
