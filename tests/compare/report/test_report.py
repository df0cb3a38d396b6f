"""The report as a whole: its files, its languages, and a disk that is full."""

import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from onebase.compare.report import report
from onebase.compare.report.document import Facts, Group, Listing, Paragraph, Plot, Table
from onebase.compare.report.report import report_document, write_report
from onebase.errors import FolderError
from onebase.language import language, set_language

SECTIONS = [
    *("verdict", "methods", "pairs", "plots", "tokens", "answers"),
    *("confusion", "near-duplicates", "claims", "reproduction"),
]


def shape(block) -> object:
    """What a block is made of, without its words."""
    if isinstance(block, Table):
        return "table", len(block.columns), [(len(row.cells), row.mark) for row in block.rows]
    if isinstance(block, Facts):
        return "facts", len(block.items)
    if isinstance(block, Group):
        return "group", [shape(part) for part in block.blocks]
    return type(block).__name__


def texts(block) -> list[str]:
    """The words of a block that are onebase's own."""
    if isinstance(block, Table):
        heads = [column.title for column in block.columns]
        return [block.caption, block.note, *heads]
    if isinstance(block, Facts):
        return [name for name, _ in block.items]
    if isinstance(block, Group):
        return [text for part in block.blocks for text in texts(part)]
    return {Paragraph: lambda: [block.text], Plot: lambda: [block.title, block.alt]}.get(
        type(block), lambda: [block.title] if isinstance(block, Listing) else []
    )()


def test_the_files_of_a_report(evidence, tmp_path) -> None:
    set_language("en")
    found = write_report(evidence.comparison, tmp_path / "new", evidence=evidence)
    assert found == tmp_path / "new" / "report.html"
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {
        *("report.md", "report.html", "report.zh.md", "report.zh.html", "plots"),
        *("arms.csv", "summary.csv", "report.json", "outcomes.jsonl"),
    }
    page = found.read_text(encoding="utf-8")
    assert '<html lang="en">' in page
    assert 'href="report.zh.html"' in page
    assert "Verdict" in page
    chinese = (tmp_path / "new" / "report.zh.html").read_text(encoding="utf-8")
    assert '<html lang="zh">' in chinese
    assert 'href="report.html"' in chinese
    assert json.loads((tmp_path / "new" / "report.json").read_text())["report"] == str(found)


def test_every_plot_of_the_markdown_is_there(evidence, tmp_path) -> None:
    write_report(evidence.comparison, tmp_path, ["zh", "en"], evidence=evidence)
    for name in ("report.md", "report.en.md"):
        links = re.findall(r"\]\((plots/.*?)\)", (tmp_path / name).read_text(encoding="utf-8"))
        assert len(links) == 5
        assert all((tmp_path / link).is_file() for link in links)


def test_the_first_language_has_the_short_name(evidence, tmp_path) -> None:
    set_language("en")
    write_report(evidence.comparison, tmp_path, ["zh"], evidence=evidence)
    assert not (tmp_path / "report.en.html").exists()
    assert '<html lang="zh">' in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert language() == "en"


def test_both_languages_say_the_same(documents) -> None:
    english, chinese = documents["en"], documents["zh"]
    assert [section.name for section in english.sections] == SECTIONS
    for one, other in zip(english.sections, chinese.sections, strict=True):
        assert one.name == other.name
        assert [shape(part) for part in one.blocks] == [shape(part) for part in other.blocks]


def test_every_section_speaks_its_language(documents, evidence) -> None:
    han = re.compile(r"[\u4e00-\u9fff]")
    for section in documents["en"].sections:
        own = [section.title, section.lead, *(t for b in section.blocks for t in texts(b))]
        assert [text for text in own if han.search(text)] == []
    for section in documents["zh"].sections:
        assert han.search(section.title)
        assert han.search(section.lead)
        own = [text for block in section.blocks for text in texts(block)]
        known = {"p", "CPU 时间", "chrF", "full", "PlayMusic"}
        english = [
            text for text in own if re.search(r"[a-z]{4,} [a-z]{3,}", text) and not han.search(text)
        ]
        assert set(english) - known <= set(evidence.summary.notes())


def test_every_section_leads_with_a_sentence(documents) -> None:
    for section in documents["en"].sections:
        assert re.fullmatch(r".{20,}\.", section.lead), section.name


def test_all_trainings_may_diverge(evidence) -> None:
    arms = tuple(
        replace(arm, outcomes=(), diverged=True, metrics={}, curve=(), training_losses=())
        for arm in evidence.comparison.arms
    )
    verdict = replace(evidence.summary.verdict, best=None, tied=(), pairs=(), detectable=None)
    summary = replace(evidence.summary, intervals={}, seeds={}, verdict=verdict)
    comparison = replace(evidence.comparison, arms=arms)
    set_language("en")
    document = report_document(replace(evidence, comparison=comparison, summary=summary))
    assert document.sections[0].lead == "No method has a result: every training diverged."


def test_one_seed_and_one_method_are_enough(make, tmp_path) -> None:
    comparison = make(seeds=1, rows=4)
    arms = tuple(arm for arm in comparison.arms if arm.method in ("base", "lora"))
    one = replace(comparison, arms=arms, near_duplicates=())
    assert write_report(one, tmp_path, ["en"]).is_file()


def test_the_loss_may_decide(comparison, tmp_path) -> None:
    page = write_report(replace(comparison, metric="loss"), tmp_path, ["en"])
    assert "(lower is better)" in page.read_text(encoding="utf-8")


def test_a_full_disk_is_named(evidence, tmp_path, monkeypatch) -> None:
    def full(file: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report, "write_whole", full)
    with pytest.raises(FolderError, match="No space left on device") as raised:
        write_report(evidence.comparison, tmp_path, ["en"], evidence=evidence)
    assert "measurements are kept" in raised.value.remedy


def test_a_folder_that_is_a_file_is_named(evidence, tmp_path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(FolderError, match="run"):
        write_report(evidence.comparison, tmp_path / "run", ["en"], evidence=evidence)
