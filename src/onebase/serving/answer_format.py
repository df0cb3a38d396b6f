"""The constraint on an answer's format, from a request's `response_format`."""

import json

from onebase.engine.constraint import Constraint
from onebase.language import say
from onebase.serving.errors import bad_field
from onebase.serving.sampling_fields import ResponseFormat

_MAX_SCHEMA_LENGTH = 64 << 10  # characters


def constraint_of(response_format: ResponseFormat | None, param: str) -> Constraint | None:
    """The constraint for `response_format`. `param` is the request field of a JSON schema.

    Raises ApiError for a schema that is missing or too long.
    """
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return Constraint("json_object")
    schema = (response_format.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise bad_field(
            param,
            say("The schema is missing.", "缺少 schema。"),
            say("Give a JSON schema as an object.", "请以对象形式提供 JSON schema。"),
        )
    text = json.dumps(schema)
    if len(text) > _MAX_SCHEMA_LENGTH:
        raise bad_field(
            param,
            say("The schema is too long.", "schema 过长。"),
            say(
                f"Keep it under {_MAX_SCHEMA_LENGTH} characters.",
                f"请不要超过 {_MAX_SCHEMA_LENGTH} 个字符。",
            ),
        )
    return Constraint("json_schema", text)
