"""The server's log: JSON lines on stderr, one per request. Requests are counted here, too, and
unexpected exceptions are handled here and logged with their traceback.

Prompts and answers are logged only if the settings say so.
"""

import json
import logging
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onebase.serving.errors import internal_error

log = logging.getLogger("onebase.serving")
_QUIET = ("/healthz", "/readyz", "/metrics")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, event, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging.Formatter."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to(handler: logging.Handler) -> None:
    """Send the server's log, and uvicorn's warnings, to `handler`."""
    handler.setFormatter(JsonFormatter())
    for name, level in (("onebase", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


class RequestLogMiddleware:
    """Assigns each request an id (header `x-request-id`), and logs the request when it has ended.

    Endpoints add fields in `scope["state"]["log"]`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        endpoint_fields: dict[str, Any] = {}
        request_id = uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["log"] = endpoint_fields
        state["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("request failed", extra={"fields": {"request": request_id}})
            if status:
                raise  # the response has started: the connection is closed
            await internal_error().response()(scope, receive, send_with_id)
        finally:
            task = str(endpoint_fields.get("model", "")).partition("@")[0]
            scope["app"].state.service.metrics.count_request(scope["path"], status, task)
            level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
            if log.isEnabledFor(level):
                fields = {
                    "request": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(time.perf_counter() - began, 4),
                    "key": state.get("key"),
                    **endpoint_fields,
                }
                log.log(level, "request", extra={"fields": fields})
