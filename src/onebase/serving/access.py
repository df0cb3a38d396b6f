"""Access control: hosts, origins, API keys and their scopes. Checked before a body is read.

- On the loopback, a Host header with another machine's name is refused: a web page can resolve its
  own name to 127.0.0.1 (DNS rebinding), and the browser then sends that name.
- An Origin that is neither this server's nor allowed is refused: pages of other origins may send
  simple requests without a preflight request.
- A key is required if any keys exist, if the server listens on an address other than the loopback,
  or if a header shows that a proxy forwarded the request: behind a proxy, all clients look local.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from onebase.errors import OnebaseError
from onebase.language import say
from onebase.serving.errors import ApiError, as_api_error
from onebase.serving.keys import ApiKey, KeyScope, KeyStore
from onebase.serving.settings import ServerSettings, is_loopback

_OPEN = ("/healthz", "/readyz", "/docs", "/openapi.json")
_FORWARDED = (
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "cf-connecting-ip",
)


class AccessMiddleware:
    """Passes a request on, or responds with 401, 403 or 421."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, keys: KeyStore) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._check_host(headers)
                self._check_origin(headers)
                key = self._key_of(headers, scope["method"], scope["path"])
            except OnebaseError as error:  # includes an unreadable key file
                await as_api_error(error).response()(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = key.id if key else None
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        allowed = {name.lower() for name in self._settings.allowed_hosts}
        if not allowed and not self._settings.on_loopback:
            return  # a key is required there, which a foreign page does not have
        name = _host_name(headers.get("host", ""))
        if name not in allowed and not is_loopback(name):
            raise ApiError(
                421,
                "host_not_allowed",
                say(
                    f"This server does not accept the host name {name!r}.",
                    f"此服务器不接受主机名 {name!r}。",
                ),
                say(
                    "Start the server with --allowed-host NAME.",
                    "请在启动服务器时加上 --allowed-host 名称。",
                ),
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or origin in self._settings.allow_origins:
            return
        if origin.partition("://")[2] != headers.get("host", ""):
            raise ApiError(
                403,
                "origin_not_allowed",
                say(
                    f"Web pages from {origin!r} may not call this server.",
                    f"来自 {origin!r} 的网页无权访问此服务器。",
                ),
                say(
                    "Start the server with --allow-origin ORIGIN.",
                    "请在启动服务器时加上 --allow-origin 源。",
                ),
            )

    def _key_of(self, headers: Headers, method: str, path: str) -> ApiKey | None:
        """The API key of a request, if it needs one. Raises ApiError."""
        required = required_scope(method, path)
        if required is None:
            return None
        if not self._keys_required(headers):
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        key = self._keys.find(token.strip()) if kind.lower() == "bearer" and token else None
        if key is None:
            raise ApiError(
                401,
                "invalid_api_key",
                say("A valid API key is required.", "需要有效的 API 密钥。"),
                say(
                    "Create one with `onebase keys new`, and send it as Authorization: Bearer KEY.",
                    "请用 `onebase keys new` 创建密钥，并在请求头中发送 Authorization: Bearer 密钥。",
                ),
            )
        if required == "admin" and key.scope != "admin":
            raise ApiError(
                403,
                "insufficient_scope",
                say("A key with the scope admin is required.", "需要权限为 admin 的密钥。"),
                say(
                    "Create one with `onebase keys new --scope admin`.",
                    "请用 `onebase keys new --scope admin` 创建。",
                ),
            )
        return key

    def _keys_required(self, headers: Headers) -> bool:
        forwarded = any(name in headers for name in _FORWARDED)
        return forwarded or not self._settings.on_loopback or self._keys.any


def required_scope(method: str, path: str) -> KeyScope | None:
    """The scope that a request's key must have; None if no key is required."""
    if path == "/" or path in _OPEN or path.startswith("/docs/"):
        return None
    changes = method not in ("GET", "HEAD", "OPTIONS")
    return "admin" if changes and path.startswith("/v1/adapters") else "use"


def _host_name(header: str) -> str:
    """A Host header without its port, in lower case."""
    if header.startswith("["):
        return header.partition("]")[0].lower() + "]"
    return header.partition(":")[0].lower()
