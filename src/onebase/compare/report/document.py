"""A report as plain data: sections of paragraphs, tables, plots and listings.

`markdown.py` and `page.py` render the same document. Every string here is plain text, the user's among
them; only the renderers know about markup, and they escape everything.
"""

from dataclasses import dataclass
from typing import Literal

Mark = Literal["", "winner", "tied", "reference", "good", "bad", "open"]


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers are aligned right."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table: its first cell names it. `mark` only colours what the cells say in words."""

    cells: tuple[str, ...]
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """A table with its caption, and what a reader must know about it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Listing:
    """Text as it is typed: a command, a file. `title` says what it is."""

    title: str
    text: str


@dataclass(frozen=True)
class Plot:
    """A plot: its file name without suffix, what it shows, its content in words, and its SVG."""

    name: str
    title: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Group:
    """Blocks under a title of their own. A page may show `detail` folded."""

    title: str
    blocks: tuple["Block", ...]
    detail: bool = False


Block = Table | Paragraph | Facts | Listing | Plot | Group


@dataclass(frozen=True)
class Section:
    """A section; `lead` says its result in one plain sentence."""

    name: str
    title: str
    lead: str
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Document:
    """The whole report in one language. `others` are the same report in other languages: the name of
    the language and of the file, without suffix.
    """

    language: str
    title: str
    facts: Facts
    sections: tuple[Section, ...]
    others: tuple[tuple[str, str], ...] = ()

    @property
    def plots(self) -> list[Plot]:
        """All plots, in the order in which they are shown."""
        found: list[Plot] = []
        waiting = [block for section in self.sections for block in section.blocks]
        while waiting:
            block = waiting.pop(0)
            if isinstance(block, Plot):
                found.append(block)
            elif isinstance(block, Group):
                waiting[:0] = block.blocks
        return found
