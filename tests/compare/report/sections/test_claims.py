"""The section of the usual claims."""

from collections import Counter

from onebase.compare.report.claims import CLAIMS
from onebase.compare.report.sections.claims import claims_section
from onebase.language import set_language


def test_every_claim_has_its_numbers_and_its_result(evidence) -> None:
    section = claims_section(evidence)
    rows = section.blocks[0].rows
    assert len(rows) == len(CLAIMS) == 12
    assert all(row.cells[2] for row in rows)
    results = Counter(row.cells[3] for row in rows)
    assert section.lead == (
        f"Of 12 usual claims, {results['held']} held here, {results['not held']} did not, and "
        f"{results['not decided']} are not decided."
    )
    marks = {"held": "good", "not held": "bad", "not decided": "open"}
    assert all(row.mark == marks[row.cells[3]] for row in rows)


def test_in_chinese(evidence) -> None:
    set_language("zh")
    rows = claims_section(evidence).blocks[0].rows
    assert rows[0].cells == ("LoRA 训练 0.1–1 % 的参数", "–", "0.69 % (921,600)", "成立")
