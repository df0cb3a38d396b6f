"""Cancels work when the client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from onebase.language import say
from onebase.serving.errors import ApiError

Result = TypeVar("Result")


class ClientLeftError(ApiError):
    """The client closed the connection. The response reaches nobody; the log has its status."""

    def __init__(self) -> None:
        super().__init__(
            499,
            "client_left",
            say("The client closed the connection.", "客户端关闭了连接。"),
            say("Send the request again.", "请重新发送请求。"),
        )


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client disconnects.

    The request's body must have been read. Raises ClientLeftError.
    """
    worker = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({worker, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
    finally:
        # Both are cancelled if this task is cancelled, too.
        for task in (worker, disconnect):
            task.cancel()
        await asyncio.gather(worker, disconnect, return_exceptions=True)
    raise ClientLeftError


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
