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
_WEAK = (EMPTY, REFUSED)  # a row that holds something else, and is taken, outweighs them
_NOTHING = ("[]", "{}")  # how a text says that there is nothing
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
    survey = _Survey()
    for row in rows:
        for name, value in row.values.items():
            # Nearly every value is text under a name that is known already.
            if not isinstance(value, str) or survey.uses.get(name, EMPTY) in _WEAK:
                survey.note(name, name, value, roles.get(name, UNREAD))
                if name in roles:
                    survey.look_inside(name, value, _TURN_ROLES)
    return tuple(Field(name, use) for name, use in survey.uses.items())


def unread(fields: Sequence[Field], held_out: str | None = None) -> list[str]:
    """A warning that names the columns and fields that hold something and are not read; those of the
    `held_out` file are told with its name.
    """
    names = [field.name for field in fields if field.use == UNREAD]
    if not names:
        return []
    listed = ", ".join(map(repr, names))
    where, where_zh = (f" in {held_out}", f"（{held_out}）") if held_out else ("", "")
    return [
        say(
            f"Not read{where}: {listed}. What stands there is left out.",
            f"未读取{where_zh}：{listed}。其中的内容不会被使用。",
        )
    ]


class _Survey:
    """What is found of a file's fields: `uses` by name, in the order of their first row."""

    def __init__(self) -> None:
        self.uses: dict[str, str] = {}
        self._plain: set[tuple[str, ...]] = set()  # turns of such keys, all texts, are known

    def note(self, name: str, key: str, value: object, use: str) -> None:
        """What becomes of a value under a key. A row that is refused for it is told of by itself: what
        another row loses there outweighs it, and either of them the rows that are empty there.
        """
        if is_empty(value) or (use == UNREAD and value in _NOTHING):
            use = EMPTY
        elif unsupported(key, value):
            use = REFUSED
        known = self.uses.get(name, EMPTY)
        if use not in _WEAK or known == EMPTY:
            self.uses[name] = use if use != EMPTY else known

    def look_inside(self, name: str, value: object, roles: Mapping[str, str]) -> None:
        """The fields of a turn, or of a list of turns, and those of content in parts."""
        if isinstance(value, dict):
            is_part = roles is _PART_ROLES and value.get("type") not in TEXT_PARTS
            for key, held in value.items():
                inner = f"{name}.{key}"
                self.note(inner, key, held, roles.get(key, REFUSED if is_part else UNREAD))
                if isinstance(held, list) and roles.get(key) == "content":
                    self.look_inside(inner, held, _PART_ROLES)
        elif isinstance(value, list):
            for item in value:
                if not isinstance(item, dict):
                    continue
                keys = (name, *item)
                if keys in self._plain and all(map(_is_text, item.values())):
                    continue
                self.look_inside(f"{name}[]", item, roles)
                if roles is _TURN_ROLES and all(map(_is_text, item.values())):
                    self._plain.add(keys)


def _is_text(value: object) -> bool:
    return type(value) is str and bool(value) and not value.isspace() and value not in _NOTHING
