"""How each column of a file, and each field of its turns, is used: read for a role, unread or refused."""

from collections.abc import Mapping, Sequence

from onebase.data.cells import is_empty
from onebase.data.example import Field
from onebase.data.row import Row
from onebase.data.turns import CHAT, MASKS, SHAREGPT, TEXT_PARTS, unsupported
from onebase.language import say

UNREAD = "unread"
EMPTY = "empty"
REFUSED = "refused"
_WEAK = (EMPTY, REFUSED)  # overridden by the use of another row that is not refused
_EMPTY_TEXTS = ("[]", "{}")  # an empty list or object as text
_TURN_ROLES = {
    **dict.fromkeys((CHAT.role, SHAREGPT.role), "role"),
    **dict.fromkeys((CHAT.content, SHAREGPT.content), "content"),
    **dict.fromkeys(MASKS, "mask"),
}
_PART_ROLES = {"type": "type", "text": "content"}


def fields_of(rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[Field, ...]:
    """Every column of `rows`, and every field of the turns in columns that are read, in the order of
    the file. `columns` maps the roles that are read to their columns.
    """
    roles = {column: role for role, column in columns.items()}
    survey = _Survey()
    for row in rows:
        for name, value in row.values.items():
            # Skip the most common case: text in a column whose use is already known.
            if not isinstance(value, str) or survey.uses.get(name, EMPTY) in _WEAK:
                survey.note(name, name, value, roles.get(name, UNREAD))
                if name in roles:
                    survey.look_inside(name, value, _TURN_ROLES)
    return tuple(Field(name, use) for name, use in survey.uses.items())


def unread(fields: Sequence[Field], held_out: str | None = None) -> list[str]:
    """A warning that lists the columns and fields with content that are not read, with the name of the
    `held_out` file if they are in that.
    """
    names = [field.name for field in fields if field.use == UNREAD]
    if not names:
        return []
    listed = ", ".join(map(repr, names))
    where, where_zh = (f" in {held_out}", f"（{held_out}）") if held_out else ("", "")
    return [
        say(
            f"Not read{where}: {listed}. Their content is ignored.",
            f"未读取{where_zh}：{listed}。其中的内容不会使用。",
        )
    ]


class _Survey:
    """Collects the `uses` of a file's fields by name, in the order of their first row."""

    def __init__(self) -> None:
        self.uses: dict[str, str] = {}
        # Keys of turns whose values are all text, already seen.
        self._plain: set[tuple[str, ...]] = set()

    def note(self, name: str, key: str, value: object, use: str) -> None:
        """Record the use of a value under a key. Of several rows' uses a role or `unread` overrides
        `refused`, which is reported with its row, and any use overrides `empty`.
        """
        if is_empty(value) or (use == UNREAD and value in _EMPTY_TEXTS):
            use = EMPTY
        elif unsupported(key, value):
            use = REFUSED
        previous = self.uses.get(name, EMPTY)
        if use not in _WEAK or previous == EMPTY:
            self.uses[name] = use if use != EMPTY else previous

    def look_inside(self, name: str, value: object, roles: Mapping[str, str]) -> None:
        """Record the fields of a turn, of a list of turns, and of content in parts."""
        if isinstance(value, dict):
            is_part = roles is _PART_ROLES and value.get("type") not in TEXT_PARTS
            for key, item in value.items():
                inner = f"{name}.{key}"
                self.note(inner, key, item, roles.get(key, REFUSED if is_part else UNREAD))
                if isinstance(item, list) and roles.get(key) == "content":
                    self.look_inside(inner, item, _PART_ROLES)
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
    return type(value) is str and bool(value) and not value.isspace() and value not in _EMPTY_TEXTS
