"""Who may ask for what: hosts, origins, keys and their scopes. Settled before a body is read.

- A Host header that names another machine is refused on the loopback: a web page can point a name
  of its own at 127.0.0.1 (DNS rebinding), and the browser then sends that name.
- An Origin that is neither this server's nor allowed is refused: a page elsewhere may send simple
  requests without asking first.
- Keys are needed where there are any, where the server listens beyond the loopback, and where a
  header says that a proxy forwarded the request, since behind one everybody looks local.
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
    """Lets a request through, or answers it with 401, 403 or 421."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, keys: KeyStore) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._check_host(headers)
                self._check_origin(headers)
                key = self._key_of(headers, scope["method"], scope["path"])
            except OnebaseError as error:  # keys that can't be read, too
                await as_api_error(error).response()(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = key.id if key else None
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        allowed = {name.lower() for name in self._settings.allowed_hosts}
        if not allowed and not self._settings.on_loopback:
            return  # a key is needed there, which no foreign page has
        name = _host_name(headers.get("host", ""))
        if name not in allowed and not is_loopback(name):
            raise ApiError(
                421,
                "host_not_allowed",
                say(
                    f"This server does not answer for the host {name!r}.",
                    f"此服务不接受主机名 {name!r}。",
                ),
                say("Start it with --allowed-host.", "请用 --allowed-host 启动服务。"),
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
                    f"Pages of {origin!r} may not call this server.",
                    f"来自 {origin!r} 的网页无权访问此服务。",
                ),
                say("Start it with --allow-origin.", "请用 --allow-origin 启动服务。"),
            )

    def _key_of(self, headers: Headers, method: str, path: str) -> ApiKey | None:
        """The key that a request came with, where it needs one. Raises ApiError."""
        needed = scope_needed(method, path)
        if needed is None:
            return None
        if not self._keys_required(headers):
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        key = self._keys.find(token.strip()) if kind.lower() == "bearer" and token else None
        if key is None:
            raise ApiError(
                401,
                "invalid_api_key",
                say("This needs a valid API key.", "需要有效的 API 密钥。"),
                say(
                    "Make one with `onebase keys new` and send it as Authorization: Bearer KEY.",
                    "请用 `onebase keys new` 创建，并以 Authorization: Bearer 密钥 发送。",
                ),
            )
        if needed == "admin" and key.scope != "admin":
            raise ApiError(
                403,
                "insufficient_scope",
                say("This needs a key of scope admin.", "需要权限为 admin 的密钥。"),
                say(
                    "Make one with: onebase keys new --scope admin.",
                    "请用 onebase keys new --scope admin 创建。",
                ),
            )
        return key

    def _keys_required(self, headers: Headers) -> bool:
        forwarded = any(name in headers for name in _FORWARDED)
        return forwarded or not self._settings.on_loopback or self._keys.any


def scope_needed(method: str, path: str) -> KeyScope | None:
    """The scope that a key must have for a request; None where none is needed."""
    if path == "/" or path in _OPEN or path.startswith("/docs/"):
        return None
    changes = method not in ("GET", "HEAD", "OPTIONS")
    return "admin" if changes and path.startswith("/v1/adapters") else "use"


def _host_name(header: str) -> str:
    """A Host header without its port, in lower case."""
    if header.startswith("["):
        return header.partition("]")[0].lower() + "]"
    return header.partition(":")[0].lower()
