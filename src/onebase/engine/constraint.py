"""A form that an answer must have."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Constraint:
    """`json_object`: any JSON object; `json_schema`: a value of `schema`, the schema's JSON text."""

    kind: Literal["json_object", "json_schema"]
    schema: str = ""
