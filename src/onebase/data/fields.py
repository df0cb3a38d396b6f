"""What became of every column of a file, and of every field of its turns."""

from collections.abc import Mapping, Sequence

from onebase.data.example import Field
from onebase.data.row import Row
from onebase.data.turns import CHAT, MASKS, SHAREGPT, TEXT_PARTS, unsupported
from onebase.data.values import is_empty
from onebase.language import say

UNREAD = "unread"
EMPTY = "empty"
REFUSED = "refused"
_TURN_ROLES = {
    **dict.fromkeys((CHAT.role, SHAREGPT.role), "role"),
    **dict.fromkeys((CHAT.content, SHAREGPT.content), "content"),
    **dict.fromkeys(MASKS, "mask"),
}
_PART_ROLES = {"type": "type", "text": "content"}


def fields_of(rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[Field, ...]:
    """Every column of `rows`, and every field of the turns in a column that is read, in the order of
    the file. `columns` maps the roles that are read to their columns.
    """
    roles = {column: role for role, column in columns.items()}
    found: dict[str, str] = {}
    for row in rows:
        for name, value in row.values.items():
            # Nearly every value is text under a name that is known already.
            if isinstance(value, str):
                if found.get(name, EMPTY) == EMPTY:
                    _found(found, name, value, roles.get(name, UNREAD))
                continue
            _found(found, name, value, roles.get(name, UNREAD))
            if name in roles:
                _inside(found, name, value, _TURN_ROLES)
    return tuple(Field(name, use) for name, use in found.items())


def unread(fields: Sequence[Field]) -> list[str]:
    """A warning that names the columns and fields that hold something and are not read."""
    names = [field.name for field in fields if field.use == UNREAD]
    if not names:
        return []
    listed = ", ".join(map(repr, names))
    return [
        say(
            f"Not read: {listed}. What stands there is left out.",
            f"未读取：{listed}。其中的内容不会被使用。",
        )
    ]


def _inside(found: dict[str, str], name: str, value: object, roles: Mapping[str, str]) -> None:
    """The fields of a turn, or of a list of turns, and those of content in parts."""
    if isinstance(value, dict):
        other = REFUSED if roles is _PART_ROLES and value.get("type") not in TEXT_PARTS else UNREAD
        for key, held in value.items():
            inner = f"{name}.{key}"
            _found(found, inner, held, roles.get(key, other))
            if isinstance(held, list) and roles.get(key) == "content":
                _inside(found, inner, held, _PART_ROLES)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                _inside(found, f"{name}[]", item, roles)


def _found(found: dict[str, str], name: str, value: object, use: str) -> None:
    """Note what becomes of a value; what one row holds outweighs the rows that are empty there."""
    if is_empty(value) or (use == UNREAD and value in ("[]", "{}")):
        found.setdefault(name, EMPTY)
    elif unsupported(name.rpartition(".")[2], value):
        found[name] = REFUSED
    elif found.get(name) != REFUSED:
        found[name] = use
