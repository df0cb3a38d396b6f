"""The response to a generation request, whole or streamed."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from onebase.serving.disconnect import unless_disconnected
from onebase.serving.event_stream import EventStream
from onebase.serving.sequence_group import SequenceGroup
from onebase.serving.service import Lease, Service


class Generation(Protocol):
    """One generation request of an API: how it is submitted, and how its results are returned."""

    async def submit(self, lease: Lease) -> SequenceGroup:
        """Submit the request's sequences."""

    async def whole(self, lease: Lease, group: SequenceGroup) -> dict[str, Any]:
        """The JSON response, when all sequences have ended."""

    def frames(self, lease: Lease, group: SequenceGroup) -> AsyncIterator[bytes]:
        """The server-sent events of a streamed response."""


async def respond(
    generation: Generation,
    request: Request,
    *,
    model: str,
    sequences: int,
    stream: bool | None,
    headers: dict[str, str],
) -> Response:
    """The response of `generation`, or the start of its stream. Raises ClientLeftError when the client
    disconnects.
    """
    service: Service = request.app.state.service

    async def generate() -> Response:
        async with AsyncExitStack() as stack:
            lease = await stack.enter_async_context(
                service.lease(model, sequences, request.state.log)
            )
            group = await generation.submit(lease)
            if stream:
                return EventStream(generation.frames(lease, group), stack.pop_all(), headers)
            return JSONResponse(await generation.whole(lease, group), headers=headers)

    return await unless_disconnected(request.receive, generate())
