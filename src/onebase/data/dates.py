"""The date that a chat template writes, by the function `strftime_now` of transformers: that of a given
moment in place of the present one.

transformers hands a template plain values alone, no function. So the function is a macro in front of the
template, which puts the moment together from its parts.
"""

from contextlib import suppress
from datetime import datetime

FUNCTION = "strftime_now"
PARTS = "onebase_date_parts"  # what the macro reads
_PERCENT = "\ue000"  # stands for %% until the other codes are done
_CODES = (
    *(f"%-{code}" for code in "dmHIMSjy"),
    *(f"%{code}" for code in "aAbBcCdDefFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"),
)
# The template's own text begins behind the line's end, which trim_blocks takes away.
_MACRO = (
    "{%- macro " + FUNCTION + "(format) -%}"
    "{%- set made = namespace(text=format) -%}"
    "{%- for code, text in " + PARTS + ".items() -%}"
    "{%- set made.text = made.text | replace(code, text) -%}"
    "{%- endfor -%}"
    "{{ made.text }}"
    "{%- endmacro %}\n"
)


def writes_date(template: str) -> bool:
    """Whether a chat template asks for the date or the time."""
    return FUNCTION in template


def of_moment(template: str) -> str:
    """A chat template that writes the date of the moment whose `date_parts` it is given."""
    return _MACRO + template


def date_parts(moment: datetime) -> dict[str, str]:
    """What strftime makes of every code that this system has, by the code."""
    parts = {"%%": _PERCENT}
    for code in _CODES:
        with suppress(ValueError):  # Windows has fewer
            parts[code] = moment.strftime(code)
    return {**parts, _PERCENT: "%"}
