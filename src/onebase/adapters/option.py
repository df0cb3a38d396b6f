"""Options of methods and trainings, explained in both languages."""

from typing import Any

from pydantic import BaseModel, Field


class StrictOptions(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Options that can't be changed; an unknown one is an error."""


def option(default: Any, en: str, zh: str, **bounds: float) -> Any:
    """A pydantic field with its description in English and in Chinese; `bounds` are ge, gt, le and lt."""
    constraints: dict[str, Any] = {**bounds}
    return Field(default, description=en, json_schema_extra={"zh": zh}, **constraints)
