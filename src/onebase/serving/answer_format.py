"""The form that an answer must have, from what a request says of it."""

import json

from onebase.engine.constraint import Constraint
from onebase.language import say
from onebase.serving.errors import bad_field
from onebase.serving.sampling_fields import ResponseFormat

_LONGEST = 64 << 10  # characters of a schema


def constraint_of(wanted: ResponseFormat | None, param: str) -> Constraint | None:
    """The constraint that `wanted` asks for. Raises ApiError for a schema that is missing or huge."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Constraint("json_object")
    schema = (wanted.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise bad_field(
            f"{param}.json_schema.schema",
            say("The schema is missing.", "缺少 schema。"),
            say("Give a JSON schema as an object.", "请以对象形式给出 JSON schema。"),
        )
    text = json.dumps(schema)
    if len(text) > _LONGEST:
        raise bad_field(
            f"{param}.json_schema.schema",
            say("The schema is too long.", "schema 过长。"),
            say(f"Keep it under {_LONGEST} characters.", f"请不要超过 {_LONGEST} 个字符。"),
        )
    return Constraint("json_schema", text)
