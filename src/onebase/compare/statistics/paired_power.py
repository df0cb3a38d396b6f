"""The power of a paired test: what it depends on, and the difference that it finds."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import nctdtr, stdtrit
from scipy.stats import binom

from onebase.compare.statistics.clusters import Clusters, Floats

POWER = 0.8
# With more ties than this among the rows, the number of rows that differ decides what a test can see.
MOSTLY_TIED = 0.25
MOST_ROWS = 10_000_000


@dataclass(frozen=True)
class PairedSpread:
    """What decides the power of a paired test. `rows` and `clusters` are those that were measured.

    `variance` is that of the difference of a row, `differing` the share of rows that differ, `size` how
    much these do (root mean square), `design_effect` by how much clustering increases the variance of
    the mean, and `degrees` the degrees of freedom of that variance.
    """

    rows: int
    clusters: int
    variance: float
    differing: float
    size: float
    design_effect: float
    degrees: float

    @classmethod
    def of(cls, differences: Floats, clusters: Clusters, width: float | None) -> "PairedSpread":
        """From the differences of the rows, [rows]. `width` is that between the bounds of the metric,
        None without bounds. Where there are some, a row that differs is added: methods that agreed on
        every row may still differ on the next one.
        """
        rows = clusters.rows
        differing = int((differences != 0).sum())
        squares = float((differences**2).sum())
        if width is not None:
            size = math.sqrt(squares / differing) if differing else width
            squares, differing = squares + size**2, differing + 1
        total = rows + 1 if width is not None else rows
        mean = float(differences.sum()) / total
        return cls(
            rows=rows,
            clusters=len(clusters),
            variance=max(squares / total - mean**2, 0.0) * total / max(total - 1, 1),
            differing=differing / total,
            size=math.sqrt(squares / differing) if differing else 0.0,
            design_effect=float(clusters.design_effect(differences)),
            degrees=clusters.degrees_of_freedom(),
        )

    def power(self, effect: float, rows: int, level: float) -> float:
        """The probability that a difference of `effect` is found with so many rows, clustered alike."""
        if rows < self.fewest_rows(level):
            return 0.0
        if self.variance == 0:
            return 1.0 if effect > 0 else 0.0
        if self.differing < 1 - MOSTLY_TIED:
            return self._power_with_ties(effect, rows, level)
        degrees = max(self.degrees * rows / self.rows, 1.0)
        t = stdtrit(degrees, 1 - level / 2)
        shift = effect / math.sqrt(self.variance * self.design_effect / rows)
        return float(1 - nctdtr(degrees, shift, t))

    def _power_with_ties(self, effect: float, rows: int, level: float) -> float:
        """The power of the exact sign test on the rows that differ (McNemar).

        A better method also wins rows that were tied. How many is not known: none at the least, and as
        many as keep the product of the rates of wins and losses at the most, so the middle is taken.
        """
        independent = int(rows / self.design_effect)
        wins_less_losses = effect / self.size
        least, most = (
            max(self.differing, wins_less_losses),
            math.hypot(self.differing, wins_less_losses),
        )
        differing = min((least + most) / 2, 1.0)
        for_one = min((1 + effect / (self.size * differing)) / 2, 1.0)
        spread = 8 * math.sqrt(independent * differing * (1 - differing)) + 8
        middle = independent * differing
        counts = np.arange(max(int(middle - spread), 0), min(int(middle + spread), independent) + 1)
        # The smallest count of wins whose two-sided p-value is below the level.
        wins = binom.isf(level / 2, counts, 0.5) + 1
        wins = np.where(2 * binom.sf(wins - 1, counts, 0.5) < level, wins, wins + 1)
        found = binom.sf(wins - 1, counts, for_one)
        return float((binom.pmf(counts, independent, differing) * found).sum())

    def fewest_rows(self, level: float) -> int:
        """The rows with which the test can find a difference at all, if every input agrees."""
        clusters = math.floor(1 - math.log2(level)) + 1
        return math.ceil(clusters * self.rows / self.clusters)

    def smallest_effect(self, level: float) -> float:
        """The smallest difference that is found with 80 % power; infinite where none is."""
        if self.variance == 0:
            return 0.0
        low, high = 0.0, self.size
        while self.power(high, self.rows, level) < POWER:
            high *= 2
            if high > 1e6 * self.size:
                return math.inf
        for _ in range(20):
            middle = (low + high) / 2
            if self.power(middle, self.rows, level) < POWER:
                low = middle
            else:
                high = middle
        return high

    def rows_for(self, effect: float, level: float) -> int:
        """The rows, clustered alike, that show a difference of `effect` with 80 % power."""
        low, high = 1, 2
        while self.power(effect, high, level) < POWER:
            low, high = high, high * 2
            if high > MOST_ROWS:
                return MOST_ROWS
        while high - low > 1:
            middle = (low + high) // 2
            if self.power(effect, middle, level) < POWER:
                low = middle
            else:
                high = middle
        return high
