"""Markdown: what a reader sees is what was written, whatever the text holds."""

import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from onebase.compare.report.document import (
    Column,
    Document,
    Facts,
    Group,
    Listing,
    Paragraph,
    Plot,
    Row,
    Section,
    Table,
)
from onebase.compare.report.markdown import escape, markdown
from onebase.language import set_language

HOSTILE = [
    "a | b || \\| \\\\| c",
    "`code` ``two`` ```three```",
    "*bold* _low_ __init__ ~~gone~~",
    "[link](javascript:alert(1)) ![image](x.png) [ref]",
    "<script>alert(1)</script> <b>& &amp; &#60;",
    "# no heading",
    "- no list",
    "+ no list",
    "12. no list",
    "1) no list",
    "> no quotation",
    "---",
    "===",
    "$x^2$ $$y$$",
    "trailing \\",
    "深圳 \U0001f600 “引号”",
]


class Text(HTMLParser):
    """The words of a page, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.words = ""
        self.tags: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def rendered(text: str) -> Text:
    page = Text()
    page.feed(MarkdownIt("gfm-like", {"linkify": False}).render(text))
    return page


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_paragraph_shows_its_text(text) -> None:
    page = rendered(escape(text))
    assert plain(page.words) == plain(text)
    assert page.tags == ["p"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_shows_its_text(text) -> None:
    table = Table("t", (Column("a"), Column("b")), (Row((text, "next")),))
    page = rendered(markdown(document(table), ""))
    assert plain(text) in plain(page.words)
    assert page.tags.count("td") == 2


def test_lines_stay_lines() -> None:
    page = rendered(escape("one\r\n- two\u2028three"))
    assert page.tags == ["p", "br", "br"]
    assert page.words.split() == ["one-", "twothree"]


def test_control_characters_are_shown_as_unknown() -> None:
    assert escape("a\0b\x1b[0m") == "a�b�\\[0m"


def test_numbers_are_not_escaped() -> None:
    assert escape("0.906") == "0.906"
    assert escape("+0.4 −0.2") == "+0.4 −0.2"


def test_a_listing_is_fenced_by_more_backticks_than_it_has() -> None:
    lines = markdown(document(Listing("File", "a\n````\nb <i>")), "").split("\n")
    at = lines.index("File:")
    assert lines[at + 2 : at + 7] == ["`````", "a", "````", "b <i>", "`````"]


def test_the_whole_document() -> None:
    table = Table("Cap", (Column("m"), Column("n", numeric=True)), (Row(("a", "1")),), "Note")
    text = markdown(
        document(
            Paragraph("Para"),
            Group("Group", (Group("Inner", (table,)),)),
            Plot("memory", "Title", "Alt [x]", "<svg/>"),
        ),
        ".zh",
    )
    assert text == (
        "# Report\n\n[中文](report.zh.md)\n\n- Base: b\n\n## One\n\n**Lead**\n\nPara\n\n"
        "### Group\n\n#### Inner\n\n*Cap*\n\n| m | n |\n| --- | ---: |\n| a | 1 |\n\nNote\n\n"
        "**Title**\n\n![Alt \\[x\\]](plots/memory.zh.svg)\n"
    )


def test_a_chinese_colon() -> None:
    set_language("zh")
    assert "- Base：b" in markdown(document(), "")


def document(*blocks) -> Document:
    section = Section("one", "One", "Lead", tuple(blocks))
    return Document("en", "Report", Facts((("Base", "b"),)), (section,), (("中文", "report.zh"),))
