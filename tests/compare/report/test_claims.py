"""The usual claims, on measurements made for each answer."""

from dataclasses import replace

import pytest

from onebase.compare.report import claims
from onebase.compare.report.claims import CLAIMS, MEMORY, TIME
from onebase.compare.statistics.paired import Pair
from onebase.language import set_language


def costing(evidence, quantity: str, **costs):
    """The evidence with the cost of some methods; the other methods are left out."""
    methods = {
        name.replace("_", "-"): replace(
            evidence.methods[name.replace("_", "-")], **{quantity: cost}
        )
        for name, cost in costs.items()
    }
    return replace(evidence, methods=methods)


def judged(evidence, *pairs: tuple[str, str, float, float]):
    """The evidence with these differences in accuracy, and their corrected p-values."""
    found = {
        (one, other): Pair(one, other, difference, difference - 0.1, difference + 0.1, p, p)
        for one, other, difference, p in pairs
    }
    kept = [
        found.get((pair.one, pair.other)) or replace(pair, p_holm=1.0)
        for pair in evidence.summary.verdict.pairs
    ]
    verdict = replace(evidence.summary.verdict, pairs=tuple(kept))
    return replace(evidence, summary=replace(evidence.summary, verdict=verdict))


@pytest.mark.parametrize(
    ("percent", "result"),
    [(0.0999, "not held"), (0.1, "held"), (1, "held"), (1.01, "not held")],
)
def test_a_share_of_the_parameters(evidence, percent, result) -> None:
    found = claims.share("lora", 0.1, 1)(costing(evidence, "trainable_percent", lora=percent))
    assert found.result == result
    assert found.numbers.endswith("% (921,600)")


def test_a_limit(evidence) -> None:
    test = claims.at_most("p-tuning", claims.ADAPTER, 10e6)
    assert test(costing(evidence, "adapter_bytes", p_tuning=10_000_000)).result == "held"
    found = test(costing(evidence, "adapter_bytes", p_tuning=12_000_000))
    assert (found.result, found.numbers) == ("not held", "12.0 MB")


@pytest.mark.parametrize(
    ("own", "other", "result"),
    [
        (100, 110, "held"),
        (100, 109, "not decided"),
        (110, 100, "not held"),
        (109, 100, "not decided"),
    ],
)
def test_the_least_by_more_than_the_margin(evidence, own, other, result) -> None:
    measured = costing(evidence, "seconds", p_tuning=own, lora=other, full=1000)
    assert claims.extreme("p-tuning", TIME, least=True)(measured).result == result


@pytest.mark.parametrize(
    ("own", "other", "result"),
    [(110, 100, "held"), (100, 109, "not decided"), (100, 110, "not held")],
)
def test_the_most_by_more_than_the_margin(evidence, own, other, result) -> None:
    measured = costing(evidence, "seconds", full=own, lora=other, ia3=1)
    found = claims.extreme("full", TIME, least=False)(measured)
    assert (found.result, found.numbers) == (result, f"full {own} s, lora {other} s")


def test_an_order_of_costs(evidence) -> None:
    test = claims.ordered("qlora", "lora", "full", quantity=MEMORY)

    def result(qlora, lora, full):
        measured = costing(evidence, "peak_memory_bytes", qlora=qlora, lora=lora, full=full)
        return test(measured).result

    assert result(1e9, 2e9, 3e9) == "held"
    assert result(1e9, 1.05e9, 3e9) == "not decided"
    assert result(2e9, 1e9, 3e9) == "not held"
    assert result(1.05e9, 1e9, 0.5e9) == "not held"


@pytest.mark.parametrize(
    ("lower", "upper", "result"),
    [
        ((0.2, 0.01), (-0.1, 0.01), "held"),
        ((0.2, 0.01), (0.0, 1.0), "held"),
        ((0.2, 0.06), (0.0, 1.0), "not decided"),
        ((-0.2, 0.01), (0.0, 1.0), "not held"),
        ((0.2, 0.01), (0.1, 0.01), "not held"),
    ],
)
def test_medium_quality_goes_by_the_paired_test(evidence, lower, upper, result) -> None:
    measured = judged(evidence, ("lora", "p-tuning", *lower), ("full", "lora", -upper[0], upper[1]))
    found = claims.medium_quality("lora", "p-tuning", "full")(measured)
    assert found.result == result
    assert "lora − p-tuning: accuracy" in found.numbers


def test_the_best_has_to_beat_every_other_method(evidence) -> None:
    test = claims.best_quality("full")
    others = [name for name in evidence.trained if name != "full"]
    all_worse = judged(evidence, *(("full", name, 0.2, 0.01) for name in others))
    assert test(all_worse).result == "held"
    one_open = judged(evidence, *(("full", name, 0.2, 0.01) for name in others if name != "ia3"))
    found = test(one_open)
    assert found.result == "not decided"
    assert found.numbers.startswith("full − ia3: accuracy")
    assert found.numbers.endswith("p (Holm) 1.000")
    one_better = judged(evidence, ("full", "lora", -0.2, 0.01))
    assert test(one_better).result == "not held"


def test_the_base_is_no_rival(evidence) -> None:
    measured = costing(evidence, "seconds", p_tuning=5.0, base=1.0, lora=9.0)
    assert claims.extreme("p-tuning", TIME, least=True)(measured).result == "held"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text[0])
def test_a_method_that_was_not_compared_decides_nothing(evidence, claim) -> None:
    summary = replace(evidence.summary, intervals={})
    found = claim.test(replace(evidence, methods={}, summary=summary))
    assert found.result == "not decided"
    assert found.numbers.endswith("was not compared")


def test_a_cost_that_was_not_measured_decides_nothing(evidence) -> None:
    measured = costing(evidence, "seconds", p_tuning=None, lora=9.0)
    found = claims.extreme("p-tuning", TIME, least=True)(measured)
    assert (found.result, found.numbers) == ("not decided", "not measured for p-tuning")
    alone = costing(evidence, "seconds", p_tuning=9.0)
    assert claims.extreme("p-tuning", TIME, least=True)(alone).result == "not decided"


def test_the_claims_of_the_made_up_comparison(evidence) -> None:
    results = {claim.text[0]: claim.test(evidence).result for claim in CLAIMS}
    assert results["LoRA trains 0.1–1 % of the parameters"] == "held"
    assert results["P-tuning trains 0.01–0.1 % of the parameters"] == "not held"
    assert results["Full fine-tuning is the slowest"] == "not held"
    assert results["Full fine-tuning trains 100 % of the parameters"] == "held"


def test_numbers_have_the_units_of_the_language(evidence) -> None:
    set_language("zh")
    assert claims.at_most("lora", claims.LOADING, 10)(evidence).numbers == "24 毫秒"
    assert claims.share("dora", 0, 1)(evidence).numbers == "未对比 dora"
