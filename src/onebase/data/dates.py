"""The date that a chat template writes, by the function `strftime_now` of transformers: that of a given
moment in place of the present one.

transformers hands a template plain values alone, no function. So the function is a macro in front of the
template, which puts the moment together from its parts.
"""

from datetime import datetime

FUNCTION = "strftime_now"
PARTS = "onebase_date_parts"  # what the macro reads
_CODES = (
    *("%-d", "%-m", "%-H", "%-I", "%-M", "%-S", "%-j", "%-y"),
    *(
        "%a",
        "%A",
        "%b",
        "%B",
        "%c",
        "%d",
        "%D",
        "%e",
        "%f",
        "%F",
        "%g",
        "%G",
        "%h",
        "%H",
        "%I",
        "%j",
    ),
    *(
        "%k",
        "%l",
        "%m",
        "%M",
        "%p",
        "%P",
        "%r",
        "%R",
        "%s",
        "%S",
        "%T",
        "%u",
        "%U",
        "%V",
        "%w",
        "%W",
    ),
    *("%x", "%X", "%y", "%Y", "%z", "%Z", "%%"),
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
    """What strftime makes of every code, by the code."""
    return {code: moment.strftime(code) for code in _CODES}
