"""Power: the exact sign test and the noncentral t, against simulation and `errorbars`."""

import math

import numpy as np
import pytest
from errorbars.power import minimum_detectable_effect, questions_needed
from scipy import stats

from onebase.compare.clusters import Clusters
from onebase.compare.paired_power import PairedSpread
from onebase.compare.sign_flips import SignFlipTest


def test_large_samples_agree_with_errorbars() -> None:
    rows = np.random.default_rng(0).normal(0, 1, 2000)
    spread = PairedSpread.of(rows, Clusters(range(2000)), None)
    variance = rows.var(ddof=1)
    # errorbars takes the variance of a single method; two uncorrelated ones differ by twice that.
    expected = minimum_detectable_effect(2000, variance=variance / 2)
    assert spread.smallest_effect(0.05) == pytest.approx(expected, rel=0.005)
    needed = questions_needed(expected / 2, variance=variance / 2).n_questions
    assert spread.rows_for(expected / 2, 0.05) == pytest.approx(needed, rel=0.01)


def test_power_of_a_loss_is_that_of_the_t_test() -> None:
    rows = np.array([1.0, -1.0] * 10)
    spread = PairedSpread.of(rows, Clusters(range(20)), None)
    t = stats.t.ppf(0.975, 19)
    shift = 0.7 * math.sqrt(20 / rows.var(ddof=1))
    assert spread.power(0.7, 20, 0.05) == pytest.approx(stats.nct.sf(t, 19, shift))


def test_power_of_rare_differences_by_hand() -> None:
    # 7 rows, one differs and one is added: 2 of 8. A difference of 1 makes every row a win: p = 2/128.
    spread = PairedSpread.of(np.array([1.0, 0, 0, 0, 0, 0, 0]), Clusters(range(7)), 1.0)
    assert spread.differing == 0.25
    assert spread.size == 1
    assert spread.power(1.0, 7, 0.05) == pytest.approx(1)
    assert spread.power(1.0, 7, 2 / 128) == 0
    # The middle of max(.25, .6) and root(.25^2 + .6^2) differ; the sign test needs 6 of 6, or 7 of 7.
    differing = (0.6 + math.hypot(0.25, 0.6)) / 2
    wins = (1 + 0.6 / differing) / 2
    expected = 7 * differing**6 * (1 - differing) * wins**6 + differing**7 * wins**7
    assert spread.power(0.6, 7, 0.05) == pytest.approx(expected)


def test_too_few_inputs_find_nothing() -> None:
    clusters = Clusters([row // 4 for row in range(20)])
    spread = PairedSpread.of(np.linspace(-1, 1, 20), clusters, None)
    assert spread.power(100.0, 20, 0.05) == 0
    assert spread.smallest_effect(0.05) == math.inf
    assert spread.fewest_rows(0.05) == 24  # 6 inputs: p = 2 / 64
    assert spread.fewest_rows(1 / 32) == 28  # 2 / 64 is not below 1 / 32
    assert spread.power(100.0, 24, 0.05) > 0.99


def test_equal_rows_of_a_loss() -> None:
    spread = PairedSpread.of(np.zeros(30), Clusters(range(30)), None)
    assert spread.smallest_effect(0.05) == 0


def test_agreement_on_every_row_of_a_bounded_metric_still_has_an_effect() -> None:
    spread = PairedSpread.of(np.zeros(60), Clusters(range(60)), 1.0)
    assert 0.08 < spread.smallest_effect(0.05) < 0.2


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_smallest_effect_is_found_in_80_percent(tied: bool, clustered: bool) -> None:
    generator = np.random.default_rng(7)
    codes = [row // 2 for row in range(120)] if clustered else list(range(120))
    clusters = Clusters(codes)

    def differences(sets: int, effect: float) -> np.ndarray:
        def latent(shape: tuple[int, ...]) -> np.ndarray:
            shared = generator.standard_normal((*shape, len(clusters)))[..., codes]
            return 0.3**0.5 * shared + 0.7**0.5 * generator.standard_normal((*shape, 120))

        both = 0.5**0.5 * latent((sets, 1)) + 0.5**0.5 * latent((sets, 2))
        if not tied:
            return both[:, 0] - both[:, 1] + effect
        cut = stats.norm.ppf(0.7 + effect / 2), stats.norm.ppf(0.7 - effect / 2)
        return (both[:, 0] < cut[0]) * 1.0 - (both[:, 1] < cut[1])

    spreads = [
        PairedSpread.of(rows, clusters, 1.0 if tied else None) for rows in differences(25, 0.0)
    ]
    effect = float(np.median([spread.smallest_effect(0.05) for spread in spreads]))
    sums = clusters.sums(differences(300, effect)).T
    assert 0.73 < (SignFlipTest(sums, clusters).p_values() < 0.05).mean() < 0.87
