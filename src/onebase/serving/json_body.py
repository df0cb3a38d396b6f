"""Validation of JSON bodies: no duplicate keys in an object, and no excessive nesting.

JSON parsers silently take the last of two values; here such a body is refused, and the error names
the key.
"""

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from onebase.language import say
from onebase.serving.disconnect import ClientLeftError
from onebase.serving.errors import ApiError, bad_field

_MAX_PATH = 200  # characters in an error


class JsonRoute(APIRoute):
    """A route whose JSON body is checked before its fields are validated."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As APIRoute.get_route_handler."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if self.body_field is not None and (body := await _body(request)):
                _parse(request, body)
            return await handle(request)

        return checked


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ClientLeftError from error


def _parse(request: Request, body: bytes) -> None:
    """Parse the body and store the value as the result of `request.json()`, which reports invalid JSON
    itself.

    Raises ApiError for a duplicate key, and for a body that is nested too deep.
    """
    duplicates: list[tuple[dict[str, Any], str]] = []  # an object, and a key that it has twice

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            duplicates.append((parsed, next(key for key, count in counts.items() if count > 1)))
        return parsed

    try:
        value = json.loads(body, object_pairs_hook=to_dict)
    except ValueError:
        return
    except RecursionError as error:
        raise ApiError(
            400,
            "invalid_body",
            say("The body is nested too deep.", "请求体嵌套层数过多。"),
            say("Send a body with less nesting.", "请减少嵌套。"),
        ) from error
    if duplicates:
        # The path is the client's text: it is shortened, and lone surrogates are escaped.
        full_path = _path_of(value, *duplicates[-1])
        path = full_path.encode("utf-8", "backslashreplace").decode()[:_MAX_PATH]
        raise bad_field(
            path,
            say(
                f"{path}: this key is in the object twice.",
                f"{path}：同一对象中该键出现了两次。",
            ),
            say("Keep one of the two.", "请只保留其中一个。"),
        )
    request._json = value  # the cache of request.json()


def _path_of(value: Any, holder: dict[str, Any], key: str) -> str:
    """The path of `key` of the object `holder` in a body (`messages.0.content`). Only the key, if
    `holder` is in a value that another duplicate key has replaced.
    """
    nodes: list[_Node] = [_Node(value, "", None)]
    while nodes:
        node = nodes.pop()
        if node.value is holder:
            return ".".join((*node.path(), key))
        items = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
        nodes += [
            _Node(item, str(name), node) for name, item in items if isinstance(item, dict | list)
        ]
    return key


@dataclass(frozen=True, slots=True)
class _Node:
    """An object or a list in a body, its name in its parent, and the parent."""

    value: Any
    name: str
    parent: "_Node | None"

    def path(self) -> list[str]:
        """The names from the root to this node."""
        names: list[str] = []
        node: _Node = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return names[::-1]
