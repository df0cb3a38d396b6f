"""The interval of a mean over held-out rows that holds for few rows and for clustered rows.

Single rows that are right or wrong have an exact interval (Blaker's). Other metrics between two bounds have
Wilson's with an effective number of rows, and unbounded ones Student's over clusters, corrected for skewness
(Hall's). `bench/intervals.py` measures the coverage of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from onebase.compare.statistics.blaker import blaker_interval
from onebase.compare.statistics.clusters import PRIOR_CLUSTERS, Clusters, Floats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, in the unit of the metric.

    A side about which the rows say nothing (a single input) is the bound of the metric, or infinite
    where the metric has none.
    """

    mean: float
    low: float
    high: float


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[int],
    *,
    bounds: tuple[float, float] | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The interval of the mean of a metric over rows. Rows of one input are one cluster.

    `bounds` are the least and the largest possible value of the metric, such as (0, 1) for accuracy;
    None for a loss.
    """
    rows = np.asarray(values, dtype=np.float64)[None]
    mean, low, high = mean_intervals(rows, Clusters(clusters), bounds, confidence)
    return Interval(float(mean[0]), float(low[0]), float(high[0]))


def mean_intervals(
    values: Floats,
    clusters: Clusters,
    bounds: tuple[float, float] | None,
    confidence: float = CONFIDENCE,
) -> tuple[Floats, Floats, Floats]:
    """The means and both ends for many sets of values over the same rows: [sets, rows] to three [sets]."""
    if bounds is None:
        return _hall(values, clusters, confidence)
    low, width = bounds[0], bounds[1] - bounds[0]
    shares = np.clip((values - low) / width, 0.0, 1.0)
    if len(clusters) == 1:  # a single input says nothing about the next one
        mean = values.mean(axis=-1)
        return mean, np.full_like(mean, bounds[0]), np.full_like(mean, bounds[1])
    if clusters.single and np.isin(shares, (0.0, 1.0)).all():
        ends = _exact(shares, confidence)
    else:
        ends = _bounded(shares, clusters, confidence)
    mean, left, right = (low + width * part for part in ends)
    return mean, left, right


def _hall(values: Floats, clusters: Clusters, confidence: float) -> tuple[Floats, Floats, Floats]:
    """Student's interval over clusters with Hall's correction for skewness (Journal of the Royal
    Statistical Society B 54, 1992): losses have a long right tail, and Student's interval is
    then too short on that side.
    """
    mean = values.mean(axis=-1)
    count = len(clusters)
    if count == 1:
        return mean, np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    sums = clusters.sums(values)
    degrees = max(clusters.degrees_of_freedom(), 1.0)
    t = stdtrit(degrees, (1 + confidence) / 2) / np.sqrt(count)
    deviation = np.sqrt(clusters.variance_of_mean(sums) * count)
    skewness = _skewness(sums - clusters.sizes * mean[..., None])
    left = deviation * _undo_skewness(t, skewness, count)
    right = deviation * _undo_skewness(-t, skewness, count)
    return mean, mean - left, mean - right


def _skewness(residuals: Floats) -> Floats:
    """Fisher's adjusted skewness over the last axis; 0 for fewer than 3 values or no variance."""
    count = residuals.shape[-1]
    square = (residuals**2).mean(axis=-1)
    if count < 3:
        return np.zeros_like(square)
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = (residuals**3).mean(axis=-1) / square**1.5
    return np.asarray(np.nan_to_num(skewness) * np.sqrt(count * (count - 1)) / (count - 2))


def _undo_skewness(t: float, skewness: Floats, count: int) -> Floats:
    """The inverse of Hall's transformation at t, which is already divided by the root of the count."""
    flat = np.abs(skewness) < 1e-6
    steep = np.where(flat, 1.0, skewness)
    curved = (np.cbrt(1 + steep * (t - steep / (6 * count))) - 1) * 3 / steep
    return np.where(flat, t, curved)


def _exact(shares: Floats, confidence: float) -> tuple[Floats, Floats, Floats]:
    rows = shares.shape[-1]
    ends = [blaker_interval(int(count), rows, confidence) for count in shares.sum(axis=-1)]
    low, high = np.array(ends).T
    return shares.mean(axis=-1), low, high


def _bounded(
    shares: Floats, clusters: Clusters, confidence: float
) -> tuple[Floats, Floats, Floats]:
    """Wilson's interval, and the hull of Wilson's and Hall's where most rows are inside of the bounds:
    Wilson's has the right shape for rows that are right or wrong, not for a skewed score.
    """
    mean, low, high = _wilson(shares, clusters, confidence)
    inside = ((shares > 0) & (shares < 1)).mean(axis=-1) > 0.5
    _, left, right = _hall(shares, clusters, confidence)
    low = np.where(inside, np.maximum(np.minimum(low, left), 0.0), low)
    high = np.where(inside, np.minimum(np.maximum(high, right), 1.0), high)
    return mean, low, high


def _wilson(shares: Floats, clusters: Clusters, confidence: float) -> tuple[Floats, Floats, Floats]:
    """Wilson's interval with the rows that would give the same variance if they were independent and
    right or wrong (Kish's effective sample size), and Student's t for the uncertainty of that number.
    """
    rows = clusters.rows
    mean = shares.mean(axis=-1)
    binomial = mean * (1 - mean)
    variance = shares.var(axis=-1)
    sums = clusters.sums(shares)
    # Only clusters that are neither all wrong nor all right tell about the variance of a rare outcome.
    informative = np.minimum((sums > 0).sum(axis=-1), (sums < clusters.sizes).sum(axis=-1))
    if clusters.single:
        degrees = np.full_like(mean, rows - 1.0)
        variance = variance * rows / (rows - 1)
    else:
        degrees = np.minimum(clusters.degrees_of_freedom(), informative) + PRIOR_CLUSTERS
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(binomial > 0, np.minimum(variance / binomial, 1.0), 1.0)
    effective = rows / np.maximum(clusters.design_effect(shares) * ratio, 1e-12)
    t = stdtrit(degrees, (1 + confidence) / 2)
    total = effective + t**2
    centre = (mean * effective + t**2 / 2) / total
    half = t * np.sqrt(effective * binomial + t**2 / 4) / total
    return mean, np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)
