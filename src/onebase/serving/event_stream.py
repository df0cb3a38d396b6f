"""Server-sent events, framed by hand: a token's event is a few hundred bytes of a fixed format."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from fastapi.sse import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from onebase.serving.disconnect import ClientLeftError, unless_disconnected

STALLED_SECONDS = 60.0  # a client that reads nothing for this long counts as disconnected
DONE = b"data: [DONE]\n\n"


class EventStream(EventSourceResponse):
    """Sends `frames` as they arrive, and closes `resources` at the end in any case.

    When the client disconnects, the iterator is cancelled, even while it waits for the first token.
    (FastAPI's own event route passes each event through two queues.)
    """

    def __init__(
        self, frames: AsyncIterator[bytes], resources: AsyncExitStack, headers: dict[str, str]
    ) -> None:
        super().__init__(
            frames, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers}
        )
        self._frames = frames
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        async with self._resources:
            try:
                await unless_disconnected(receive, self._send(send))
            except ClientLeftError:
                scope.get("state", {}).get("log", {})["left"] = True

    async def _send(self, send_now: Send) -> None:
        async def send(message: Message) -> None:
            try:
                async with asyncio.timeout(STALLED_SECONDS):
                    await send_now(message)
            except TimeoutError as error:
                raise ClientLeftError from error

        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async for frame in self._frames:
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def frame(data: object, event: str | None = None) -> bytes:
    """One event with `data` as JSON."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


class ChunkFrames:
    """Frames that differ only in one text: the rest is serialized once."""

    MARK = "\ufdd0"

    def __init__(self, chunk: object, event: str | None = None) -> None:
        """`chunk` has MARK, as a whole string value, in place of the text."""
        mark = json.dumps(self.MARK, ensure_ascii=False).encode()
        self._before, self._after = frame(chunk, event).split(mark)

    def with_text(self, text: str) -> bytes:
        """The frame with `text`."""
        return self._before + json.dumps(text, ensure_ascii=False).encode() + self._after
