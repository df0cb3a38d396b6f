"""What goes wrong in a request, in the shape of OpenAI's API.

No answer holds a path or a traceback: those are in the log.
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
    """A refusal with its HTTP status.

    `reason` is OpenAI's `code`, `param` the field at fault. `retry_after` is in seconds.
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
        """The JSON object that a client gets."""
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
        """The whole answer."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def bad_field(param: str, message: str, remedy: str) -> ApiError:
    """A field with a value that can't be used."""
    return ApiError(400, "invalid_value", message, remedy, param=param)


def unsupported(param: str) -> ApiError:
    """A field that would change the answer, which this server does not know how to honour."""
    return ApiError(
        400,
        "unsupported_parameter",
        say(f"{param!r} is not supported here.", f"此服务不支持 {param!r}。"),
        say("Leave it out.", "请去掉该字段。"),
        param=param,
    )


def unknown_model(name: str, valid: Iterable[str]) -> ApiError:
    """A `model` that names nothing; lists the names that do."""
    names = list(valid)
    near = get_close_matches(name, names, n=1)
    hint = say(f"Did you mean {near[0]!r}? ", f"是否想用 {near[0]!r}？") if near else ""
    listed = ", ".join(names)
    return ApiError(
        404,
        "model_not_found",
        say(f"There is no model {name!r}.", f"没有模型 {name!r}。"),
        hint + say(f"Valid: {listed}.", f"可用：{listed}。"),
        param="model",
    )


def unavailable_model(name: str, reason: str) -> ApiError:
    """A stored task that this server can't or may not answer for."""
    return ApiError(
        409,
        "model_unavailable",
        say(f"{name} is not available: {reason}.", f"{name} 不可用：{reason}。"),
        say("GET /v1/models lists what is.", "可用的模型见 GET /v1/models。"),
        param="model",
    )


def broken_adapter(name: str) -> ApiError:
    """An adapter whose files can't be used. Why is in the log, with the path."""
    return ApiError(
        500,
        "adapter_not_loadable",
        say(
            f"The adapter of {name} can't be loaded; the server's log says why.",
            f"无法加载 {name} 的适配器；原因见服务器日志。",
        ),
        say(
            f"Put back a copy of its files, or train the task again; other versions: "
            f"{name.partition('@')[0]}@VERSION.",
            f"请恢复其文件，或重新训练该任务；也可使用其他版本：{name.partition('@')[0]}@版本号。",
        ),
        param="model",
    )


def body_too_large() -> ApiError:
    """A body beyond the limit."""
    return ApiError(
        413,
        "body_too_large",
        say("The body is too large.", "请求体过大。"),
        say("Send less at a time.", "请减小请求的大小。"),
    )


def internal_error() -> ApiError:
    """A failure of the server itself."""
    return ApiError(
        500,
        "internal_error",
        say("The server failed.", "服务器内部出错。"),
        say("Its log says why.", "原因见服务器日志。"),
    )


def failed_pass(reason: str) -> ApiError:
    """An answer that came to no end. `reason` is set where the request itself is at fault."""
    if not reason:
        return internal_error()
    return ApiError(
        400,
        "unusable_request",
        say(f"No answer could be generated: {reason}.", f"无法生成回答：{reason}。"),
        say("Change the request.", "请修改请求。"),
    )


def timed_out() -> ApiError:
    """Scores that are not complete within the time for one request, or while the server drains: a part
    of them would be no answer.
    """
    return ApiError(
        504,
        "timed_out",
        say("The time for this request is over.", "此请求已超时。"),
        say(
            "Send less at a time, or start the server with a longer --timeout.",
            "请减小请求，或用更长的 --timeout 启动服务。",
        ),
    )


def as_api_error(error: OnebaseError) -> ApiError:
    """An error of the library as a client may see it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(400, "invalid_value", error.message, error.remedy)
    log.error(
        "failed", extra={"fields": {"error": type(error).__name__, "message_text": str(error)}}
    )
    return internal_error()


def install_error_handlers(app: FastAPI) -> None:
    """Have `app` answer every refusal in this shape. (Failures: see request_log.)"""

    async def of_library(_: Request, error: Exception) -> Response:
        assert isinstance(error, OnebaseError)
        return as_api_error(error).response()

    async def of_fields(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _of_validation(error).response()

    async def of_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _of_http(error).response()

    app.add_exception_handler(OnebaseError, of_library)
    app.add_exception_handler(RequestValidationError, of_fields)
    app.add_exception_handler(HTTPException, of_http)


def _of_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    # Of a union, pydantic names the member too, as it is written in the code: those are left out.
    place = [
        str(part)
        for part in first["loc"][1:]
        if isinstance(part, int) or _FIELD.fullmatch(str(part))
    ]
    param = ".".join(place) or None
    said = str(first["msg"])
    if first["type"] == "json_invalid":
        param, said = None, say("the body is not valid JSON", "请求体不是合法的 JSON")
    where = f"{param}: " if param else ""
    return ApiError(
        400,
        "missing_required_parameter" if first["type"] == "missing" else "invalid_value",
        f"{where}{said}.",
        say("See /docs.", "请查看 /docs。"),
        param=param,
    )


def _of_http(error: HTTPException) -> ApiError:
    if error.status_code == 413:
        return body_too_large()
    known = {
        400: ("invalid_body", say("The body can't be read.", "无法读取请求体。")),
        404: ("not_found", say("There is nothing at this path.", "该路径不存在。")),
        405: (
            "method_not_allowed",
            say("This path has no such method.", "该路径不支持此方法。"),
        ),
    }
    reason, message = known.get(error.status_code, ("http_error", str(error.detail)))
    made = ApiError(error.status_code, reason, message, say("See /docs.", "请查看 /docs。"))
    return made
