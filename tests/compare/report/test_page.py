"""The page: escaped, whole in itself, and readable without eyes."""

import base64
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest

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
from onebase.compare.report.page import page
from onebase.language import set_language

VOID = {"meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """The tags with their attributes, in order; every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


def document(*blocks, title: str = "Report") -> Document:
    section = Section("one", "One", "Lead", tuple(blocks))
    return Document("en", title, Facts((("Base", "b"),)), (section,), (("中文", "report.zh"),))


@pytest.fixture(scope="module")
def whole(documents) -> str:
    return page(documents["en"])


ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;{{ 7*7 }}"


def test_text_is_never_markup() -> None:
    table = Table(ATTACK, (Column(ATTACK),), (Row((ATTACK,)),), ATTACK)
    blocks = (
        Paragraph(ATTACK),
        Facts(((ATTACK, ATTACK),)),
        Listing(ATTACK, ATTACK),
        Group(ATTACK, (table,)),
        Group(ATTACK, (table,), detail=True),
        Plot("p", ATTACK, ATTACK, "<svg/>"),
    )
    parsed = Page(page(document(*blocks, title=ATTACK)))
    assert parsed.of("script") == []
    assert [image["alt"] for image in parsed.of("img")] == [ATTACK]
    assert parsed.words.count(ATTACK) == 18


def test_control_characters_are_shown_as_unknown() -> None:
    parsed = Page(page(document(Paragraph("a\0b\x1bc\td"))))
    assert "a�b�c\td" in parsed.words


def test_nothing_comes_from_outside(whole) -> None:
    parsed = Page(whole)
    addresses = [
        value
        for _, attrs in parsed.found
        for name, value in attrs.items()
        if name in ("src", "href", "srcset", "data", "action")
    ]
    assert addresses
    assert all(re.match(r"#|data:image/svg\+xml;base64,|report\.zh\.html$", a) for a in addresses)
    assert not re.search(r"url\(|@import", whole)
    assert parsed.of("script") == parsed.of("link") == []


def test_a_plot_is_an_image_with_its_content_in_words(whole) -> None:
    images = Page(whole).of("img")
    assert len(images) == 5
    for image in images:
        assert len(image["alt"]) > 40
        svg = base64.b64decode(image["src"].partition(",")[2])
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_every_table_has_a_caption_and_headers(whole) -> None:
    parsed = Page(whole)
    tables = len(parsed.of("table"))
    assert tables > 8
    assert len(parsed.of("caption")) == tables
    assert all(head.get("scope") in ("col", "row") for head in parsed.of("th"))


def test_a_table_that_scrolls_can_be_reached_by_keyboard(whole) -> None:
    regions = [div for div in Page(whole).of("div") if div.get("class") == "table"]
    assert all(div["tabindex"] == "0" and div["aria-label"] for div in regions)


def test_headings_have_no_gaps(whole) -> None:
    levels = [int(tag[1]) for tag, _ in Page(whole).found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_contents_lead_to_every_section(whole) -> None:
    parsed = Page(whole)
    ids = [attrs["id"] for _, attrs in parsed.found if "id" in attrs]
    links = [a["href"] for a in parsed.of("a") if a["href"].startswith("#")]
    assert len(ids) == len(set(ids)) == 11
    assert {link[1:] for link in links} == set(ids)


def test_the_page_says_its_language(documents) -> None:
    set_language("zh")
    parsed = Page(page(documents["zh"]))
    assert parsed.of("html") == [{"lang": "zh"}]
    assert parsed.of("nav") == [{"aria-label": "目录"}]
