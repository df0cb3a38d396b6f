"""Work for a client that may leave before it is done."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from onebase.language import say
from onebase.serving.errors import ApiError

Result = TypeVar("Result")


class ClientLeftError(ApiError):
    """The client closed its connection. Nobody reads the answer; the log has its status."""

    def __init__(self) -> None:
        super().__init__(
            499,
            "client_left",
            say("The client closed the connection.", "客户端关闭了连接。"),
            say("Ask again.", "请重新请求。"),
        )


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled as soon as the client leaves.

    The request's body must have been read. Raises ClientLeftError.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
    finally:
        # Also where this task itself is cancelled: then both end with it.
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
    raise ClientLeftError


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
