"""What a method took, over its seeds."""

from dataclasses import replace

import pytest

from onebase.compare.measured_method import measured_methods
from onebase.compare.result import Cost, CurvePoint, Forgetting


def with_arms(comparison, method, changes):
    """The comparison with changes to the arms of a method, by seed."""
    arms = tuple(
        replace(arm, **changes.get(arm.seed, {})) if arm.method == method else arm
        for arm in comparison.arms
    )
    return replace(comparison, arms=arms)


def test_costs_are_the_mean_over_the_seeds_that_were_measured(comparison) -> None:
    changes = {1: {"cost": Cost(100, 10.0, 20.0)}, 2: {"cost": Cost(200, 30.0, 40.0)}}
    lora = measured_methods(with_arms(comparison, "lora", changes))["lora"]
    assert (lora.peak_memory_bytes, lora.seconds, lora.cpu_seconds) == (150, 20, 30)


def test_what_no_seed_measured_is_none(comparison) -> None:
    base = measured_methods(comparison)["base"]
    assert base.peak_memory_bytes is base.seconds is base.load_seconds is None
    assert not base.trained


def test_forgetting_is_the_rise_of_the_loss(comparison) -> None:
    changes = {seed: {"forgetting": {"en": Forgetting(2.0, 2.0 + seed)}} for seed in (1, 2, 3)}
    lora = measured_methods(with_arms(comparison, "lora", changes))["lora"]
    assert lora.forgetting == {"en": pytest.approx(2.0)}


def test_a_diverged_seed_does_not_count_in_the_metrics(comparison) -> None:
    metrics = {1: {"loss": 1.0}, 2: {"loss": 2.0}, 3: {"loss": 99.0}}
    changes = {seed: {"metrics": value} for seed, value in metrics.items()}
    changes[3] |= {"diverged": True, "outcomes": ()}
    lora = measured_methods(with_arms(comparison, "lora", changes))["lora"]
    assert lora.metrics == {"loss": 1.5}
    assert lora.diverged == 1


def test_tokens_to_a_loss_are_those_of_the_first_evaluation_at_or_below_it(comparison) -> None:
    curves = {
        1: (CurvePoint(0, 3.0), CurvePoint(10, 2.0), CurvePoint(20, 2.5), CurvePoint(30, 1.0)),
        2: (CurvePoint(0, 3.0), CurvePoint(10, 2.1)),
        3: (),
    }
    changes = {seed: {"curve": curve} for seed, curve in curves.items()}
    lora = measured_methods(with_arms(comparison, "lora", changes))["lora"]
    assert lora.tokens_to(2.0) == [10, None, None]
    assert lora.tokens_to(1.5) == [30, None, None]
