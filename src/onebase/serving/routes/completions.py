"""POST /v1/completions."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from onebase.engine.request import Event, FinishReason, Token
from onebase.serving.completion_schema import DEFAULT_TOKENS, CompletionRequest, other_fields
from onebase.serving.errors import ApiError
from onebase.serving.event_stream import DONE, ChunkFrames, frame
from onebase.serving.fields import check_fields, ignored_header
from onebase.serving.json_body import JsonRoute
from onebase.serving.logprobs import TextOffsets, completion_logprobs
from onebase.serving.prompts import check_ids, text_prompt
from onebase.serving.routes.response import respond
from onebase.serving.sampling_fields import sampling_of_choice
from onebase.serving.sequence_group import SequenceGroup, SequenceSpec, require_complete_scores
from onebase.serving.service import Lease
from onebase.serving.usage import usage_of

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    """Continue bare prompts, without a template."""
    headers = ignored_header(check_fields(body, other_fields(body)))
    completion = _Completion(body, request.state.request_id)
    return await respond(
        completion,
        request,
        model=body.model,
        sequences=completion.sequences,
        stream=body.stream,
        headers=headers,
    )


class _Completion:
    """A completion request. Its sequences are the `n` choices of each prompt, one prompt after another."""

    def __init__(self, body: CompletionRequest, request_id: str) -> None:
        self._body = body
        self._prompts = body.prompts()
        self._choices = body.n or 1
        self.sequences = len(self._prompts) * self._choices
        self._id = f"cmpl-{request_id}"
        self._echoed: list[str] = []

    async def submit(self, lease: Lease) -> SequenceGroup:
        """As Generation."""
        body = self._body
        self._texts = lease.texts
        max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        sampling = body.sampling(max(1, max_tokens), body.logprobs)
        check_ids(lease.task, list(sampling.logit_bias), "logit_bias")
        score_prompt = bool(body.echo) and body.logprobs is not None
        specs = []
        for index, given in enumerate(self._prompts):
            prompt = await text_prompt(lease.task, given, f"prompt.{index}")
            self._echoed.append(self._echo(lease, given))
            for choice in range(self._choices):
                specs.append(
                    SequenceSpec(
                        prompt,
                        sampling_of_choice(sampling, index * self._choices + choice),
                        0 if score_prompt else None,
                        score_only=max_tokens == 0,
                        streamed=bool(body.stream),
                    )
                )
        lease.log_text("prompt", self._echoed or self._prompts)
        return await lease.submit(specs, "prompt")

    def _echo(self, lease: Lease, given: str | list[int]) -> str:
        """The text before an answer: the prompt with `echo`, else nothing."""
        if not self._body.echo:
            return ""
        if isinstance(given, str):
            return given
        text: str = lease.task.base.tokenizer.decode(given, skip_special_tokens=False)
        return text

    async def whole(self, lease: Lease, group: SequenceGroup) -> dict[str, Any]:
        """As Generation."""
        answers = await group.results()
        for request in group.requests:
            require_complete_scores(request)
        lease.log["finish_reason"] = [event.finish_reason for event in answers]
        texts = [self._echo_of(index) + event.text for index, event in enumerate(answers)]
        lease.log_text("answer", texts)
        return {
            **lease.head(self._id, "text_completion"),
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
            "usage": usage_of(group, len(self._prompts)),
        }

    async def frames(self, lease: Lease, group: SequenceGroup) -> AsyncIterator[bytes]:
        """For each choice the echo, if requested, the text and the finish reason; then the usage."""
        options = self._body.stream_options
        usage = {"usage": None} if options and options.include_usage else {}
        head = {**lease.head(self._id, "text_completion"), **usage}

        def chunk(index: int, text: str, logprobs: Any, reason: FinishReason | None) -> Any:
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
            return {**head, "choices": [choice]}

        indices = range(self.sequences)
        text_frames = [ChunkFrames(chunk(i, ChunkFrames.MARK, None, None)) for i in indices]
        offsets = [self._offsets() for _ in indices]
        echo_sent = [not self._body.echo for _ in indices]
        reasons: list[FinishReason | None] = [None for _ in indices]
        try:
            async for events in group.events():
                frames = []
                for index, event in events:
                    text, tokens = event.text, list(event.tokens)
                    if not echo_sent[index]:
                        echo_sent[index] = True
                        require_complete_scores(event.request)
                        text = self._echo_of(index) + text
                        tokens = [*self._scored(event), *tokens]
                    logprobs = self._logprobs(tokens, offsets[index])
                    reasons[index] = event.finish_reason
                    if event.finish_reason is None and logprobs is None:
                        if text:
                            frames.append(text_frames[index].with_text(text))
                    else:
                        frames.append(frame(chunk(index, text, logprobs, event.finish_reason)))
                if frames:
                    yield b"".join(frames)
        except ApiError as error:
            yield frame(error.body())
            return
        lease.log["finish_reason"] = reasons
        if usage:
            totals = usage_of(group, len(self._prompts))
            yield frame({**head, "choices": [], "usage": totals})
        lease.log_text("answer", [item.text for item in group.requests])
        yield DONE

    def _echo_of(self, index: int) -> str:
        return self._echoed[index // self._choices]

    def _scored(self, event: Event) -> list[Token]:
        """The tokens of the prompt, if it is echoed with log-probabilities."""
        return event.request.prompt_logprobs if self._body.echo else []

    def _offsets(self) -> TextOffsets:
        return TextOffsets(self._texts)

    def _logprobs(self, tokens: list[Token], offsets: TextOffsets) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        return completion_logprobs(tokens, self._texts, offsets)
