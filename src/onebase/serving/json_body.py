"""JSON bodies as every route reads them: no key twice in one object, and not nested too deep.

JSON's readers take the last of two values in silence; here such a body is refused, by the key.
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

_SHOWN = 200  # characters of a place, in an error


class JsonRoute(APIRoute):
    """A route whose JSON body is checked before its fields are."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As APIRoute has it."""
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if self.body_field is not None and (body := await _body(request)):
                _read(request, body)
            return await handle(request)

        return checked


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ClientLeftError from error


def _read(request: Request, body: bytes) -> None:
    """Keep what the body holds as what `request.json()` gives. What is no JSON is left to that.

    Raises ApiError for a key that an object has twice and for a body that is nested too deep.
    """
    twice: list[tuple[dict[str, Any], str]] = []

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice.append((found, next(key for key, count in counts.items() if count > 1)))
        return found

    try:
        value = json.loads(body, object_pairs_hook=made)
    except ValueError:
        return
    except RecursionError as error:
        raise ApiError(
            400,
            "invalid_body",
            say("The body is nested too deep.", "请求体嵌套层数过多。"),
            say("Send a flatter one.", "请减少嵌套。"),
        ) from error
    if twice:
        # What a client named is told in part, and without halves of characters.
        place = _place_of(value, *twice[-1]).encode("utf-8", "backslashreplace").decode()[:_SHOWN]
        raise bad_field(
            place,
            say(
                f"{place}: this key stands twice in one object.",
                f"{place}：同一对象中该键出现了两次。",
            ),
            say("Keep one of the two.", "请只保留其中一个。"),
        )
    request._json = value  # where request.json() keeps it


def _place_of(value: Any, holder: dict[str, Any], key: str) -> str:
    """Where in a body `holder` has `key`: `messages.0.content`; the key alone where `holder` went with
    the value of another key that stood twice.
    """
    places: list[_Place] = [_Place(value, "", None)]
    while places:
        place = places.pop()
        if place.part is holder:
            return ".".join((*place.path(), key))
        items = place.part.items() if isinstance(place.part, dict) else enumerate(place.part)
        places += [
            _Place(item, str(name), place) for name, item in items if isinstance(item, dict | list)
        ]
    return key


@dataclass(frozen=True, slots=True)
class _Place:
    """An object or a list of a body, its name in the one around it, and that one."""

    part: Any
    name: str
    around: "_Place | None"

    def path(self) -> list[str]:
        """The names from the body down to here."""
        names: list[str] = []
        place: _Place = self
        while place.around is not None:
            names.append(place.name)
            place = place.around
        return names[::-1]
