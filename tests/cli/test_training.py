"""How a trained task is reported."""

from pathlib import Path

import pytest

from onebase.adapters.store import StoredAdapter
from onebase.cli.training import report_line


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (2.0, 1.0, "2.000 -> 1.000 (50 % lower)"),
        (1.0, 1.12, "1.000 -> 1.120 (12 % higher)"),
        (11.768, 178.438, "(1416 % higher)"),
        (1.0, 1.001, "(the same)"),
        (0.0, 0.0, "0.000 -> 0.000"),
        (0.0, 0.5, "0.000 -> 0.500"),
        (1.0, float("inf"), "1.000 -> inf"),
        (None, 1.0, "no held-out loss"),
        (1.0, None, "no held-out loss"),
    ],
)
def test_the_report_says_whether_the_loss_is_lower_or_higher(
    before: float | None, after: float | None, words: str
) -> None:
    metrics = {"eval_loss": after, "base_eval_loss": before}
    record = {"method": "lora", "metrics": metrics}
    line = report_line(StoredAdapter("t", 1, Path("t"), current=True, record=record))
    assert line.endswith(words)
