"""A report's document as Markdown (GitHub's)."""

import re

from onebase.compare.report.document import (
    Block,
    Document,
    Facts,
    Listing,
    Paragraph,
    Plot,
    Section,
    Table,
)
from onebase.language import say

PLOTS = "plots"  # the folder of the plots, beside the file
_MARKUP = re.compile(r"([\\`*_\[\]<>|~$!#&])")
# What starts a list, a heading or a quotation where it stands first in a line.
_FIRST = re.compile(r"^(?:(-+|\+|=+)|(\d+)([.)]))(?=\s|$)")


def markdown(document: Document, suffix: str) -> str:
    """The document as Markdown; the `suffix` of its file goes into the names of its plots."""
    lines = [f"# {escape(document.title)}", ""]
    for language, file in document.others:
        lines += [f"[{escape(language)}]({file}.md)", ""]
    lines += _block(document.facts, 2, suffix)
    for section in document.sections:
        lines += _section(section, suffix)
    return "\n".join(lines).rstrip() + "\n"


def escape(text: str) -> str:
    """Text as it is, whatever it holds, on one line of Markdown. Line breaks are `<br>`."""
    lines = [_MARKUP.sub(r"\\\1", line.strip()) for line in _visible(text).split("\n")]
    return _FIRST.sub(_escaped_first, "<br>".join(lines))


def _escaped_first(match: re.Match[str]) -> str:
    sign, digits, mark = match.groups()
    return f"\\{sign}" if sign else f"{digits}\\{mark}"


def _visible(text: str) -> str:
    """Without control characters, which Markdown does not keep; every line break is a newline."""
    joined = "\n".join(text.splitlines())
    return "".join("�" if ord(char) < 32 and char not in "\n\t" else char for char in joined)


def _section(section: Section, suffix: str) -> list[str]:
    lines = [f"## {escape(section.title)}", "", f"**{escape(section.lead)}**", ""]
    for block in section.blocks:
        lines += _block(block, 3, suffix)
    return lines


def _block(block: Block, level: int, suffix: str) -> list[str]:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Paragraph):
        return [escape(block.text), ""]
    if isinstance(block, Facts):
        colon = say(": ", "：")
        return [f"- {escape(name)}{colon}{escape(value)}" for name, value in block.items] + [""]
    if isinstance(block, Listing):
        return _listing(block)
    if isinstance(block, Plot):
        title = escape(block.alt)
        return [
            f"**{escape(block.title)}**",
            "",
            f"![{title}]({PLOTS}/{block.name}{suffix}.svg)",
            "",
        ]
    lines = [f"{'#' * level} {escape(block.title)}", ""]
    for part in block.blocks:
        lines += _block(part, level + 1, suffix)
    return lines


def _table(table: Table) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rows = [line([escape(cell) for cell in row.cells]) for row in table.rows]
    head = line([escape(column.title) for column in table.columns])
    rule = line(["---:" if column.numeric else "---" for column in table.columns])
    note = [escape(table.note), ""] if table.note else []
    return [f"*{escape(table.caption)}*", "", head, rule, *rows, "", *note]


def _listing(listing: Listing) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", listing.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [
        escape(listing.title) + say(":", "："),
        "",
        fence,
        *_visible(listing.text).split("\n"),
        fence,
        "",
    ]
