"""`auto`: w8a8 where it costs a base little, and what was measured is kept."""

from pathlib import Path

import pytest

from onebase.engine.lean import quality
from onebase.engine.lean.quality import Quality, load_for_answering


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path))


def test_a_base_that_loses_little_is_held_in_w8a8(tiny_folder: Path) -> None:
    base, quality_loss = load_for_answering(str(tiny_folder))
    assert quality_loss is not None
    assert base.precision.name == "w8a8"
    assert 0 < quality_loss.divergence < quality.MOST_DIVERGENCE
    assert quality_loss.isolated


def test_what_was_measured_is_kept(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = load_for_answering(str(tiny_folder))
    monkeypatch.setattr(quality, "measure", None)  # not called again
    base, second = load_for_answering(str(tiny_folder))
    assert first == second
    assert base.precision.name == "w8a8"


def test_a_base_that_loses_much_stays_exact(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "MOST_DIVERGENCE", 1e-9)
    for _ in range(2):  # measured, then known
        base, quality_loss = load_for_answering(str(tiny_folder))
        assert (base.precision.name, quality_loss) == ("fp32", None)


def test_another_precision_is_taken_as_it_is(tiny_folder: Path) -> None:
    base, quality_loss = load_for_answering(str(tiny_folder), "int8")
    assert (base.precision.name, quality_loss) == ("int8", None)


@pytest.mark.parametrize(
    ("divergence", "loss", "isolated", "passes"),
    [
        (0.004, 0.01, True, True),
        (0.03, 0.01, True, False),
        (0.004, 0.04, True, False),
        (0.004, -0.5, True, True),
        (0.004, 0.01, False, False),
    ],
)
def test_every_bound_counts(divergence: float, loss: float, isolated: bool, passes: bool) -> None:
    assert Quality(divergence, loss, isolated).passes is passes
