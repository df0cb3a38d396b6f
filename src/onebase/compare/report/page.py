"""A report's document as one HTML page that needs nothing from outside."""

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from onebase.compare.report.document import Document, Plot
from onebase.language import say

_SKIPPED = frozenset(range(32)) - {9, 10}  # control characters that HTML does not have


def page(document: Document) -> str:
    """The document as HTML. Everything in it that is text is escaped."""
    environment = Environment(
        loader=PackageLoader("onebase.compare.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters["data_uri"] = _data_uri
    template = environment.get_template("report.html.jinja")
    return template.render(
        document=document,
        contents=say("Contents", "目录"),
        top=say("Back to the top", "回到顶部"),
    )


def _visible(value: object) -> object:
    """Text without the characters that HTML does not have."""
    if type(value) is str and any(ord(char) in _SKIPPED for char in value):
        return "".join("�" if ord(char) in _SKIPPED else char for char in value)
    return value


def _data_uri(plot: Plot) -> str:
    """The plot as an address that holds it; as an image it can run no script."""
    encoded = base64.b64encode(plot.svg.encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"
