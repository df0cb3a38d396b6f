"""The server process: uvicorn with the application, and its shutdown."""

import socket
import time
from contextlib import ExitStack
from types import FrameType

import uvicorn
from fastapi import FastAPI

from onebase.errors import UsageError
from onebase.language import say
from onebase.serving.service import Service


class Server(uvicorn.Server):
    """A uvicorn server that drains. After the first Ctrl-C or SIGTERM, running answers continue for up
    to `drain_seconds`, and new requests get 503. A second signal stops the server at once.
    """

    def __init__(self, app: FastAPI, drain_seconds: float) -> None:
        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self._app = app
        self._drain_seconds = drain_seconds
        self._signalled: float | None = None  # in time.monotonic

    def serve_until_it_ends(self, listening: socket.socket) -> None:
        """Serve until a signal. If the server could not start, raises the reason."""
        self.run(sockets=[listening])
        service: Service | None = getattr(self._app.state, "service", None)
        if service is not None and service.failure is not None:
            raise service.failure

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on a signal."""
        if self._signalled is not None:
            self.should_exit = self.force_exit = True
            return
        self._signalled = time.monotonic()
        service: Service | None = getattr(self._app.state, "service", None)
        if service is None:
            self.should_exit = True
        else:
            service.admission.close()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second. Returns whether to shut down now."""
        service: Service = self._app.state.service
        if service.failure is not None:
            self.should_exit = True
        if self._signalled is not None and not self.should_exit:
            overdue = time.monotonic() - self._signalled > self._drain_seconds
            if overdue:
                service.dispatcher.truncate_all()
            self.should_exit = overdue or not service.admission.sequences
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; called before the model is loaded. Raises UsageError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with ExitStack() as stack:
            bound = stack.enter_context(socket.socket(family, kind, proto))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            stack.pop_all()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            say(f"Can't listen on {host}:{port}: {reason}.", f"无法监听 {host}:{port}：{reason}。"),
            say("Choose another --port or --host.", "请换一个 --port 或 --host。"),
        ) from error
    return bound
