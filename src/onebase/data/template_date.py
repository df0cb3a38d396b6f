"""Chat templates that write the date with transformers' `strftime_now`: the date of a given moment
instead of the present.

transformers passes only plain values to a template, no functions. The function is therefore defined
as a macro before the template, which builds the text from the moment's parts.
"""

from contextlib import suppress
from datetime import datetime

FUNCTION = "strftime_now"
PARTS = "onebase_date_parts"  # the variable that the macro reads
_PERCENT = "\ue000"  # stands for %% until the other codes are done
_CODES = (
    *(f"%-{code}" for code in "dmHIMSjy"),
    *(f"%{code}" for code in "aAbBcCdDefFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"),
)
# The template begins after the line break, which trim_blocks removes.
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
    """Whether a chat template writes the date or the time."""
    return FUNCTION in template


def of_moment(template: str) -> str:
    """The chat template, changed to write the date from `date_parts` in the variable PARTS."""
    return _MACRO + template


def date_parts(moment: datetime) -> dict[str, str]:
    """The result of strftime for every format code that this system supports."""
    parts = {"%%": _PERCENT}
    for code in _CODES:
        with suppress(ValueError):  # Windows has fewer
            parts[code] = moment.strftime(code)
    return {**parts, _PERCENT: "%"}
