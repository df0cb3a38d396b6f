"""The sign-flip test of a mean difference over clusters, and its inversion to an interval.

Where two methods are equally good, the difference of each input is as likely to have the other sign. The
test compares the observed mean with those of all flips of signs, a whole cluster at a time (Fisher's
randomization test). It is exact for any number of clusters, and the same as the exact McNemar test where the
rows are single and right or wrong. The interval has every difference that the same test does not reject
(Hartigan, JASA 64, 1969): so the interval and the p-value never contradict each other.
"""

import math

import numpy as np

from onebase.compare.statistics.clusters import Clusters, Floats

# All flips up to this number of clusters, a fixed random sample of them above.
EXACT_CLUSTERS = 14
SAMPLED_FLIPS = 19_999
SEED = 15
_CHUNK = 2048


def flipped_sums(sums: Floats, clusters: Clusters) -> tuple[Floats, Floats]:
    """For every flip of signs the sum of the differences in the flipped clusters, [flips, pairs], and
    their rows, [flips]; `sums` are those of each cluster, [clusters, pairs].

    A flip and its opposite are the same test, so the last cluster keeps its sign. Of all flips the
    first one, which changes nothing, is left out.
    """
    count = len(clusters)
    columns = np.column_stack([sums, clusters.sizes])
    if count <= EXACT_CLUSTERS:
        numbers = np.arange(1, 2 ** (count - 1))
        flips = (numbers[:, None] >> np.arange(count - 1)) & 1
        flipped = flips.astype(np.float64) @ columns[: count - 1]
        return flipped[:, :-1], flipped[:, -1]
    generator = np.random.default_rng(SEED)
    parts = []
    for start in range(0, SAMPLED_FLIPS, _CHUNK):
        rows = min(_CHUNK, SAMPLED_FLIPS - start)
        bits = np.unpackbits(
            generator.integers(0, 256, (rows, -(-count // 8)), dtype=np.uint8), axis=1
        )
        parts.append(bits[:, :count].astype(np.float64) @ columns)
    flipped = np.concatenate(parts)
    return flipped[:, :-1], flipped[:, -1]


class SignFlipTest:
    """The test of several pairs at once over the same clusters. `sums` are the differences summed over
    each cluster, [clusters, pairs].

    A flip leaves the mean at least as far from a value δ as the observed mean is exactly if δ lies
    between the means of the flipped and of the unflipped clusters. `_lows` and `_highs` are these two
    means, [flips, pairs], sorted by flip.
    """

    def __init__(self, sums: Floats, clusters: Clusters) -> None:
        total = sums.sum(axis=0)
        self.differences = total / clusters.rows
        flipped, rows = flipped_sums(sums, clusters)
        # A sampled flip of all clusters or of none rejects nothing, as the observed signs themselves.
        proper = (rows > 0) & (rows < clusters.rows)
        self._always = 1 + int((~proper).sum())
        self._flips = 1 + len(rows)
        part, size = flipped[proper], rows[proper, None]
        ends = part / size, (total - part) / (clusters.rows - size)
        # Sums of floats that should cancel leave a rest, which must not look like a difference.
        slack = 1e-12 * np.abs(sums).sum(axis=0)
        one, other = (np.where(np.abs(end) <= slack, 0.0, end) for end in ends)
        self._lows, self._highs = np.minimum(one, other), np.maximum(one, other)

    def p_values(self) -> Floats:
        """The probability of a mean difference as large as the observed one if the methods are equal."""
        reached = ((self._lows <= 0) & (self._highs >= 0)).sum(axis=0)
        return np.asarray((self._always + reached) / self._flips)

    def intervals(self, level: float) -> tuple[Floats, Floats]:
        """The least and the largest mean difference that the test at this level does not reject; infinite
        where there are too few clusters to reject anything.
        """
        needed = math.ceil(level * self._flips * (1 - 1e-12)) - self._always
        if needed < 1:
            width = np.full_like(self.differences, np.inf)
            return -width, width
        low = np.partition(self._lows, needed - 1, axis=0)[needed - 1]
        high = -np.partition(-self._highs, needed - 1, axis=0)[needed - 1]
        return low, high
