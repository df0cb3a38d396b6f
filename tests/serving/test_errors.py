"""Whatever goes wrong, the answer is a JSON object in OpenAI's shape, with no path in it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

PATH = "/v1/chat/completions"


def is_error(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return str(error["code"])


USER = b'"messages": [{"role": "user", "content": "x"}]'


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "missing_required_parameter", None),
        (b"{", "invalid_value", None),
        (b"[]", "invalid_value", None),
        (b"null", "invalid_value", None),
        (b'"x"', "invalid_value", None),
        (b"\xff\xfe", "invalid_value", None),
        (b'{"model": "\\ud800", ' + USER + b"}", "invalid_value", "model"),
        (b'{"model": "base", ' + USER.replace(b'"x"', b'"\\ud800"') + b"}", "invalid_value",
         "messages.0.content"),
        (b'{"model": "base", ' + USER + b', "temperature": NaN}', "invalid_value", "temperature"),
        (b'{"model": "base", ' + USER + b', "temperature": 1e999}', "invalid_value", "temperature"),
        (b"[" * 100_000, "invalid_body", None),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_body", None),
        (b'{"model": "base"}', "missing_required_parameter", "messages"),
    ],
    ids=range(13),
)  # fmt: skip
def test_bodies_that_are_none(body: bytes, code: str, param: str | None, server: Any) -> None:
    headers = {"Content-Type": "application/json"}
    answer = server.http.post(PATH, content=body, headers=headers)
    assert is_error(answer, 400) == code
    assert answer.json()["error"]["param"] == param


def test_a_body_of_another_type(server: Any) -> None:
    answer = server.http.post(PATH, content=b"model=base", headers={"Content-Type": "text/plain"})
    assert is_error(answer, 400) == "invalid_value"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body(chunked: bool, start: Callable[..., Any]) -> None:
    server = start(limits={"body_bytes": 1000})
    body = json.dumps({"model": "base", "messages": "x" * 2000}).encode()
    content: Any = iter([body[:900], body[900:]]) if chunked else body
    headers = {"Content-Type": "application/json"}
    answer = server.http.post(PATH, content=content, headers=headers)
    assert is_error(answer, 413) == "body_too_large"


def test_paths_and_methods(server: Any) -> None:
    assert is_error(server.http.get("/v1/nothing"), 404) == "not_found"
    assert is_error(server.http.get(PATH), 405) == "method_not_allowed"
    assert server.http.get("/docs/../../pyproject.toml").status_code == 404
    assert server.http.get("/docs/..%2Fapp.py").status_code == 404


def test_a_fault_of_the_server(own_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(own_server.service.catalog, "find", broken)
    answer = own_server.chat()
    assert is_error(answer, 500) == "internal_error"
    assert "secret" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_pass_that_fails(stream: bool, own_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request gets an error, the next one an answer."""
    expected = own_server.text()
    runner = next(iter(own_server.service.engine._batches.values())).runner

    def broken(_: Any) -> Any:
        monkeypatch.undo()
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(runner, "run", broken)
    if stream:
        body = {"model": "base", "messages": [{"role": "user", "content": "x"}]}
        events = own_server.events(PATH, **body)
        assert events[-1]["error"]["code"] == "internal_error"
    else:
        assert is_error(own_server.chat(), 500) == "internal_error"
    assert own_server.text() == expected
