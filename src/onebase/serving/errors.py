"""The errors of the HTTP API, in OpenAI's format.

Responses never contain a path or a traceback; those are in the log.
"""

import logging
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from onebase.errors import OnebaseError, UsageError
from onebase.language import say

log = logging.getLogger("onebase.serving")
_FIELD = re.compile(r"(?!str$|int$|float$|bool$|dict$|list$)[a-z_][a-z0-9_]*")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(OnebaseError):
    """An error response with its HTTP status.

    `reason` is OpenAI's `code`, `param` the invalid field. `retry_after` is in seconds.
    """

    code = "api"

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        remedy: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, remedy)
        self.status = status
        self.reason = reason
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        kind = _TYPES.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {
            "error": {
                "message": str(self).strip(),
                "type": kind,
                "param": self.param,
                "code": self.reason,
            }
        }

    def response(self) -> Response:
        """The HTTP response."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def bad_field(param: str, message: str, remedy: str) -> ApiError:
    """A field with an invalid value."""
    return ApiError(400, "invalid_value", message, remedy, param=param)


def unsupported(param: str) -> ApiError:
    """A field that would change the answer, but is not supported."""
    return ApiError(
        400,
        "unsupported_parameter",
        say(f"{param!r} is not supported here.", f"此服务器不支持 {param!r}。"),
        say("Leave it out.", "请去掉该字段。"),
        param=param,
    )


def unknown_model(name: str, valid: Iterable[str]) -> ApiError:
    """An unknown `model`; the error lists the valid names."""
    names = list(valid)
    nearest = get_close_matches(name, names, n=1)
    hint = say(f"Did you mean {nearest[0]!r}? ", f"是否想用 {nearest[0]!r}？") if nearest else ""
    listed = ", ".join(names)
    return ApiError(
        404,
        "model_not_found",
        say(f"There is no model {name!r}.", f"没有模型 {name!r}。"),
        hint + say(f"Valid: {listed}.", f"可用的模型：{listed}。"),
        param="model",
    )


def unavailable_model(name: str, reason: str) -> ApiError:
    """A stored task that this server does not serve."""
    return ApiError(
        409,
        "model_unavailable",
        say(f"{name} is not available: {reason}.", f"{name} 不可用：{reason}。"),
        say("GET /v1/models lists the available models.", "可用的模型见 GET /v1/models。"),
        param="model",
    )


def broken_adapter(name: str) -> ApiError:
    """An adapter that cannot be loaded. The log has the reason and the path."""
    return ApiError(
        500,
        "adapter_not_loadable",
        say(
            f"The adapter of {name} can't be loaded; the server's log has the reason.",
            f"无法加载 {name} 的适配器；原因见服务器日志。",
        ),
        say(
            f"Restore its files, train the task again, or use another version: "
            f"{name.partition('@')[0]}@VERSION.",
            f"请恢复其文件，重新训练该任务，或使用其他版本：{name.partition('@')[0]}@版本号。",
        ),
        param="model",
    )


def body_too_large() -> ApiError:
    """A body above the limit."""
    return ApiError(
        413,
        "body_too_large",
        say("The body is too large.", "请求体过大。"),
        say("Send a smaller request.", "请减小请求的大小。"),
    )


def internal_error() -> ApiError:
    """A failure of the server itself."""
    return ApiError(
        500,
        "internal_error",
        say("Internal server error.", "服务器内部错误。"),
        say("The server's log has the reason.", "原因见服务器日志。"),
    )


def generation_failed(reason: str) -> ApiError:
    """An answer that could not be generated. `reason` is set if the request is the cause."""
    if not reason:
        return internal_error()
    return ApiError(
        400,
        "unusable_request",
        say(f"No answer could be generated: {reason}.", f"无法生成回答：{reason}。"),
        say("Change the request.", "请修改请求。"),
    )


def timed_out() -> ApiError:
    """A request that exceeded its time limit, or the time to drain the server, and for which partial
    results are useless.
    """
    return ApiError(
        504,
        "timed_out",
        say("The request timed out.", "请求超时。"),
        say(
            "Send a smaller request, or start the server with a longer --timeout.",
            "请减小请求，或在启动服务器时用 --timeout 指定更长的时间。",
        ),
    )


def as_api_error(error: OnebaseError) -> ApiError:
    """An error of the library as an API error, without details of the server."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(400, "invalid_value", error.message, error.remedy)
    log.error(
        "failed", extra={"fields": {"error": type(error).__name__, "message_text": str(error)}}
    )
    return internal_error()


def install_error_handlers(app: FastAPI) -> None:
    """Make `app` respond to all errors in this format. (Unexpected exceptions: see request_log.)"""

    async def handle_library_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, OnebaseError)
        return as_api_error(error).response()

    async def handle_validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _from_validation(error).response()

    async def handle_http_exception(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _from_http(error).response()

    app.add_exception_handler(OnebaseError, handle_library_error)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
    app.add_exception_handler(HTTPException, handle_http_exception)


def _from_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    # For a union, pydantic adds the name of the member type, which clients do not know.
    path = [
        str(part)
        for part in first["loc"][1:]
        if isinstance(part, int) or _FIELD.fullmatch(str(part))
    ]
    param = ".".join(path) or None
    message = str(first["msg"])
    if first["type"] == "json_invalid":
        param, message = None, say("the body is not valid JSON", "请求体不是合法的 JSON")
    prefix = f"{param}: " if param else ""
    return ApiError(
        400,
        "missing_required_parameter" if first["type"] == "missing" else "invalid_value",
        f"{prefix}{message}.",
        say("See /docs.", "请查看 /docs。"),
        param=param,
    )


def _from_http(error: HTTPException) -> ApiError:
    if error.status_code == 413:
        return body_too_large()
    messages = {
        400: ("invalid_body", say("The body can't be read.", "无法读取请求体。")),
        404: ("not_found", say("This path does not exist.", "该路径不存在。")),
        405: (
            "method_not_allowed",
            say("This path does not support this method.", "该路径不支持此方法。"),
        ),
    }
    reason, message = messages.get(error.status_code, ("http_error", str(error.detail)))
    return ApiError(error.status_code, reason, message, say("See /docs.", "请查看 /docs。"))
