"""The plots and their content in words."""

from dataclasses import replace

from onebase.compare.report.sections.plots import plots_section
from onebase.compare.statistics.intervals import Interval

NO_COSTS = {"peak_memory_bytes": None, "seconds": None}


def test_the_alternative_text_has_the_numbers(evidence) -> None:
    known = {
        "ia3": Interval(0.7, 0.6, 0.8),
        "lora": Interval(0.9, 0.8, 1),
        "base": Interval(0.3, 0, 1),
    }
    found = replace(evidence, summary=replace(evidence.summary, intervals=known))
    section = plots_section(found)
    assert section.blocks[1].alt == (
        "Quality against memory. Each method with its peak memory and accuracy: ia3 1.40 GB, 0.700; "
        "lora 1.45 GB, 0.900. Pareto front: ia3, lora."
    )
    assert section.lead == (
        "For quality against memory, the Pareto front is ia3, lora, the cheapest first."
    )


def test_what_was_not_measured_is_not_drawn(evidence) -> None:
    methods = {name: replace(one, **NO_COSTS) for name, one in evidence.methods.items()}
    section = plots_section(replace(evidence, methods=methods))
    assert [block.name for block in section.blocks] == ["parameters", "validation", "training"]


def test_a_neutral_metric_has_no_front(evidence) -> None:
    summary = replace(evidence.summary, direction="neutral", metric="length")
    section = plots_section(replace(evidence, summary=summary))
    assert section.lead == "The curves of every method that was trained."
