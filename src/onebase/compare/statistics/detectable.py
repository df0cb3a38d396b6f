"""The smallest difference between two methods that a number of held-out rows can show."""

import math
from dataclasses import dataclass

from onebase.compare.statistics.clusters import Clusters, Floats
from onebase.compare.statistics.paired_power import PairedSpread
from onebase.language import say


@dataclass(frozen=True)
class DetectableEffect:
    """`effect` is the smallest difference that is found with 80 % power at the level corrected for all
    pairs; infinite where the inputs are too few to show any difference. `rows` are the rows at hand,
    `clusters` their inputs. `rows_for_half` are the rows that would show half of the effect, or any
    difference at all where the effect is infinite.
    """

    effect: float
    rows: int
    clusters: int
    rows_for_half: int

    def sentence(self) -> str:
        """The statement for people, in the current language."""
        rows = say(f"{self.rows:,} rows", f"{self.rows:,} 行")
        if self.clusters < self.rows:
            rows += say(f" ({self.clusters:,} inputs)", f"（{self.clusters:,} 个不同输入）")
        more = f"{_rounded_up(self.rows_for_half):,}"
        if math.isinf(self.effect):
            return say(
                f"{rows} are too few to show any difference; that takes at least {more} rows.",
                f"{rows}太少，任何差异都分辨不出；至少需要 {more} 行。",
            )
        effect, half = f"{self.effect:.2g}", f"{self.effect / 2:.2g}"
        return say(
            f"With {rows}, differences under {effect} cannot be seen; {more} rows would show {half}.",
            f"{rows}分辨不出小于 {effect} 的差异；要分辨 {half} 的差异，约需 {more} 行。",
        )


def detectable_effect(
    differences: Floats,
    clusters: Clusters,
    *,
    level: float,
    bounds: tuple[float, float] | None = None,
) -> DetectableEffect:
    """The detectable effect from the differences of two methods on each row, [rows], at a level that is
    corrected for the number of pairs.
    """
    width = bounds[1] - bounds[0] if bounds is not None else None
    spread = PairedSpread.of(differences, clusters, width)
    effect = spread.smallest_effect(level)
    if width is not None and effect > width:
        effect = math.inf
    enough = spread.fewest_rows(level) if math.isinf(effect) else spread.rows_for(effect / 2, level)
    return DetectableEffect(effect, clusters.rows, len(clusters), enough)


def _rounded_up(rows: int) -> int:
    """To two digits: an estimate."""
    step = int(10 ** max(len(str(rows)) - 2, 0))
    return math.ceil(rows / step) * step
