"""The detectable effect and its sentence."""

import math

import numpy as np
import pytest

from onebase.compare.clusters import Clusters
from onebase.compare.detectable import DetectableEffect, detectable_effect
from onebase.language import set_language


def test_half_of_the_effect_takes_about_four_times_the_rows() -> None:
    rows = np.random.default_rng(0).normal(0, 1, 100)
    effect = detectable_effect(rows, Clusters(range(100)), level=0.05)
    assert (effect.rows, effect.clusters) == (100, 100)
    assert effect.effect == pytest.approx(2.8 * rows.std(ddof=1) / 10, rel=0.03)
    assert 380 < effect.rows_for_half < 410


def test_a_stricter_level_needs_a_larger_effect() -> None:
    rows = np.random.default_rng(0).choice([-1.0, 0.0, 0.0, 0.0, 1.0], 100)
    effects = [
        detectable_effect(rows, Clusters(range(100)), level=level, bounds=(0, 1)).effect
        for level in (0.05, 0.05 / 36)
    ]
    assert 0.1 < effects[0] < effects[1] < 0.5


def test_infinite_where_no_result_could_be_significant() -> None:
    clusters = Clusters([0, 0, 1, 1, 2, 2, 3, 3])
    effect = detectable_effect(np.ones(8), clusters, level=0.05, bounds=(0, 1))
    assert math.isinf(effect.effect)
    assert effect.rows_for_half == 12


def test_sentences() -> None:
    effect = DetectableEffect(effect=0.08123, rows=60, clusters=60, rows_for_half=233)
    assert effect.sentence() == (
        "With 60 rows, differences under 0.081 cannot be seen; 240 rows would show 0.041."
    )
    few = DetectableEffect(effect=math.inf, rows=12, clusters=4, rows_for_half=18)
    assert few.sentence() == (
        "12 rows (4 inputs) are too few to show any difference; that takes at least 18 rows."
    )
    set_language("zh")
    assert effect.sentence() == "60 行分辨不出小于 0.081 的差异；要分辨 0.041 的差异，约需 240 行。"
    assert few.sentence() == "12 行（4 个不同输入）太少，任何差异都分辨不出；至少需要 18 行。"
