"""Who gets in: hosts, origins, keys and scopes, forwarded requests."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from onebase.adapters.workspace import Workspace
from onebase.serving.access import AccessMiddleware, required_scope
from onebase.serving.keys import KeyStore
from onebase.serving.settings import ServerSettings, is_loopback

CHAT, PROMOTE = "/v1/chat/completions", "/v1/adapters/support/promote"


async def _answer(_: Request) -> Response:
    return PlainTextResponse("in")


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore(Workspace(tmp_path / "ws"), {})


def client_of(keys: KeyStore, **settings: object) -> TestClient:
    app = Starlette()
    app.add_route("/{path:path}", _answer, methods=["GET", "POST", "DELETE", "OPTIONS"])
    server_settings = ServerSettings.model_validate(settings)
    guarded = AccessMiddleware(app, server_settings, keys)
    return TestClient(guarded, base_url="http://127.0.0.1:8000")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_loopback_needs_no_key(keys: KeyStore) -> None:
    client = client_of(keys)
    assert client.post(CHAT).text == "in"
    assert client.post(PROMOTE).text == "in"


def test_where_there_are_keys_one_is_needed(keys: KeyStore) -> None:
    client = client_of(keys)
    _, token = keys.new("use")
    _, admin = keys.new("admin")
    for headers in ({}, bearer("ob-x-wrong"), {"Authorization": token}, bearer("")):
        refused = client.post(CHAT, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert client.post(CHAT, headers=bearer(token)).text == "in"
    assert client.get("/v1/adapters", headers=bearer(token)).text == "in"
    refused = client.post(PROMOTE, headers=bearer(token))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
    assert client.delete("/v1/adapters/support", headers=bearer(token)).status_code == 403
    assert client.post(PROMOTE, headers=bearer(admin)).text == "in"
    assert client.post(CHAT, headers=bearer(admin)).text == "in"


def test_a_revoked_key_is_refused_at_once(keys: KeyStore) -> None:
    client = client_of(keys, host="0.0.0.0")
    key, token = keys.new("use")
    assert client.post(CHAT, headers=bearer(token)).text == "in"
    keys.revoke(key.id)
    assert client.post(CHAT, headers=bearer(token)).status_code == 401


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/v1/classify", "/v1/adapters"])
def test_beyond_the_loopback_a_key_is_needed_for_all_but_the_probes(
    keys: KeyStore, path: str
) -> None:
    client = client_of(keys, host="0.0.0.0")
    assert client.get(path).status_code == 401
    for probe in ("/healthz", "/readyz", "/docs", "/openapi.json", "/docs/swagger-ui.css"):
        assert client.get(probe).text == "in"


@pytest.mark.parametrize(
    "header", ["Forwarded", "X-Forwarded-For", "x-real-ip", "X-Forwarded-Host"]
)
def test_a_forwarded_request_needs_a_key(keys: KeyStore, header: str) -> None:
    client = client_of(keys)
    assert client.post(CHAT, headers={header: "127.0.0.1"}).status_code == 401


def test_a_foreign_host_is_refused_on_the_loopback(keys: KeyStore) -> None:
    client = client_of(keys)
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost.x"):
        refused = client.post(CHAT, headers={"Host": host})
        assert (refused.status_code, refused.json()["error"]["code"]) == (421, "host_not_allowed")
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000", "127.3.2.1"):
        assert client.post(CHAT, headers={"Host": host}).text == "in"


def test_allowed_hosts(keys: KeyStore) -> None:
    client = client_of(keys, allowed_hosts=["Box.lan"])
    assert client.post(CHAT, headers={"Host": "box.lan:8000"}).text == "in"
    assert client.post(CHAT, headers={"Host": "other.lan"}).status_code == 421
    _, token = keys.new("use")
    open_host = client_of(keys, host="0.0.0.0")
    assert open_host.post(CHAT, headers={"Host": "any", **bearer(token)}).text == "in"
    named = client_of(keys, host="0.0.0.0", allowed_hosts=["box.lan"])
    assert named.post(CHAT, headers={"Host": "any", **bearer(token)}).status_code == 421


def test_pages_of_other_origins_are_refused(keys: KeyStore) -> None:
    client = client_of(keys, allow_origins=["https://page.example"])
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9999"):
        refused = client.post(CHAT, headers={"Origin": origin})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
    for origin in ("https://page.example", "http://127.0.0.1:8000"):
        assert client.post(CHAT, headers={"Origin": origin}).text == "in"


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/healthz", None),
        ("GET", "/docs/x", None),
        ("GET", "/docsx", "use"),
        ("GET", "/v1/adapters", "use"),
        ("POST", "/v1/adapters", "admin"),
        ("DELETE", "/v1/adapters/x", "admin"),
        ("PUT", "/v1/adapters/x", "admin"),
        ("POST", "/v1/classify", "use"),
    ],
)
def test_scopes(method: str, path: str, scope: str | None) -> None:
    assert required_scope(method, path) == scope


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("example.com", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
