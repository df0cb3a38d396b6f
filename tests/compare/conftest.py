"""A made-up comparison: nine methods on a classification, with costs, curves and hostile texts."""

import math
import random
import statistics
from collections.abc import Callable
from itertools import combinations

import pytest

from onebase.compare.detectable import DetectableEffect
from onebase.compare.document import Document
from onebase.compare.evidence import Evidence
from onebase.compare.intervals import Interval
from onebase.compare.measured_method import measured_methods
from onebase.compare.paired import Pair
from onebase.compare.report import report_document
from onebase.compare.result import (
    BASE,
    EXAMPLES,
    Arm,
    Comparison,
    Cost,
    CurvePoint,
    Forgetting,
    HeldOutRow,
    NearDuplicate,
    Outcome,
    mean_loss,
)
from onebase.compare.seed_spread import SeedSpread
from onebase.compare.verdict import MetricSummary, Verdict
from onebase.language import Language, set_language

LABELS = ("PlayMusic", "GetWeather", "BookRestaurant", "RateBook", "AddToPlaylist")
# Method: accuracy, trainable parameters, peak memory (MB), seconds, adapter bytes.
METHODS = {
    "full": (0.93, 134_515_008, 2900, 310, 538_000_000),
    "lora": (0.92, 921_600, 1450, 205, 3_700_000),
    "qlora": (0.90, 921_600, 1320, 390, 3_700_000),
    "ia3": (0.80, 74_880, 1400, 180, 310_000),
    "prompt-tuning": (0.66, 11_520, 1380, 176, 48_000),
    "p-tuning": (0.78, 688_000, 1385, 190, 48_000),
    "p-tuning-v2": (0.84, 184_320, 1270, 150, 740_000),
}
PARAMETERS = 134_515_008
ROWS = 60


class KnownVerdict(Verdict):
    def pair(self, one: str, other: str) -> Pair:
        for pair in self.pairs:
            if (pair.one, pair.other) == (one, other):
                return pair
            if (pair.other, pair.one) == (one, other):
                return Pair(
                    one, other, -pair.difference, -pair.high, -pair.low, pair.p, pair.p_holm
                )
        raise KeyError((one, other))


class KnownSummary(MetricSummary):
    def notes(self) -> list[str]:
        return ["With 60 rows, differences under 0.080 cannot be seen; 240 rows would show 0.040."]


def made_up(seed: int = 0, *, seeds: int = 3, rows: int = ROWS) -> Comparison:
    """A comparison as it might come out, the same for the same seed."""
    chance = random.Random(seed)
    held_out = tuple(
        HeldOutRow(
            file="data/snips.jsonl",
            line=3 * row + 1,
            input=f"play the song number {row // 2} by | `nobody` <b>at</b> all\nplease",
            reference=LABELS[row // 2 % len(LABELS)],
            cluster=row // 2,
        )
        for row in range(rows)
    )
    hardness = [chance.gauss(0, 1) for _ in range(rows)]
    arms = [
        _base(BASE, 0.35, held_out, hardness, chance),
        _base(EXAMPLES, 0.62, held_out, hardness, chance),
    ]
    for method in METHODS:
        arms += [_arm(method, one, held_out, hardness, chance) for one in range(1, seeds + 1)]
    return Comparison(
        run="20261128-110000-ab12",
        task="intents",
        base="smollm2-135m",
        data="data/snips.jsonl",
        kind="classification",
        metric="accuracy",
        metrics=("accuracy",),
        settings="defaults",
        training_rows=150,
        validation_rows=20,
        held_out=held_out,
        arms=tuple(arms),
        near_duplicates=(
            NearDuplicate("data/snips.jsonl:4", "data/snips.jsonl:9", 0.97),
            NearDuplicate("data/snips.jsonl:31", "data/snips.jsonl:2", 0.91),
        ),
        rows_sha256="5f2b" * 16,
        config={"task": "intents", "seeds": [1, 2, 3], "set": {"epochs": 3}},
        seconds=1460.0,
        cpu_seconds=2710.0,
        machine={"processor": "2 cores", "versions": {"onebase": "0.1.0", "torch": "2.13.0"}},
        phases={"loading": 4.0, "training": 620.0, "scoring": 210.0, "alone": 601.0},
    )


def naive_summary(comparison: Comparison, metric: str = "accuracy") -> MetricSummary:
    """Statistics by the normal approximation: plain numbers for a report, not good ones."""
    direction = "lower" if metric == "loss" else "higher"
    table = {}
    for method in comparison.methods:
        if arms := comparison.arms_of(method):
            columns = zip(*(comparison.values(arm, metric) for arm in arms), strict=True)
            table[method] = [statistics.fmean(column) for column in columns]
    pairs = [_pair(one, other, table) for one, other in combinations(table, 2)]
    corrected = _holm(pairs)
    sign = 1 if direction == "lower" else -1
    ranked = sorted(table, key=lambda name: sign * statistics.fmean(table[name]))
    best = ranked[0]
    tied = tuple(
        name
        for name in ranked
        if name == best
        or not next(pair for pair in corrected if pair.has(name) and pair.has(best)).decided
    )
    rows = len(comparison.held_out)
    clusters = len(set(comparison.clusters))
    return KnownSummary(
        metric=metric,
        direction=direction,
        rows=rows,
        clusters=clusters,
        intervals={name: Interval(*_interval(values)) for name, values in table.items()},
        verdict=KnownVerdict(
            best, tied, tuple(corrected), DetectableEffect(0.08, rows, clusters, 240)
        ),
        seeds={
            method: _spread(comparison, method, metric)
            for method in table
            if comparison.arms_of(method)[0].trained
        },
    )


def evidence_of(comparison: Comparison, metric: str = "accuracy") -> Evidence:
    return Evidence(comparison, naive_summary(comparison, metric), measured_methods(comparison))


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    return made_up()


@pytest.fixture
def make() -> Callable[..., Comparison]:
    return made_up


@pytest.fixture(scope="session")
def evidence(comparison: Comparison) -> Evidence:
    return evidence_of(comparison)


@pytest.fixture(scope="session")
def documents(evidence: Evidence) -> dict[Language, Document]:
    """The report in each language."""
    found = {}
    for one, other, file in (("en", "中文", "report.zh"), ("zh", "English", "report")):
        set_language(one)
        found[one] = report_document(evidence, ((other, file),))
    return found


@pytest.fixture
def weigh() -> Callable[..., Evidence]:
    """The evidence of a comparison that a test made."""
    return evidence_of


def _base(method, accuracy, held_out, hardness, chance) -> Arm:
    outcomes = _outcomes(accuracy, held_out, hardness, chance)
    return Arm(
        method=method,
        seed=None,
        settings={},
        outcomes=outcomes,
        metrics=_metrics(outcomes),
        identity=method,
        run="20261128-110000-ab12",
        tokens_per_second=240.0,
    )


def _arm(method, seed, held_out, hardness, chance) -> Arm:
    accuracy, trainable, memory, seconds, size = METHODS[method]
    outcomes = _outcomes(accuracy + chance.gauss(0, 0.01), held_out, hardness, chance)
    final = 0.2 + 2 * (1 - accuracy)
    curve = tuple(
        CurvePoint(2000 * step, final + (3.2 - final) * math.exp(-step / 3) + chance.gauss(0, 0.01))
        for step in range(9)
    )
    training = tuple(
        CurvePoint(
            160 * step, final + (3.4 - final) * math.exp(-step / 30) + abs(chance.gauss(0, 0.2))
        )
        for step in range(1, 101)
    )
    return Arm(
        method=method,
        seed=seed,
        settings={"learning_rate": 2e-4, "epochs": 3},
        outcomes=outcomes,
        metrics=_metrics(outcomes),
        identity=f"{method}-{seed}",
        run="20261128-110000-ab12" if seed > 1 else "20261127-090000-cd34",
        trainable=trainable,
        trainable_percent=100 * trainable / PARAMETERS,
        adapter_bytes=size,
        cost=Cost(memory * 10**6, float(seconds), 1.8 * seconds) if seed == 1 else None,
        load_seconds=0.02 + size / 1e9,
        tokens_per_second=230.0 - trainable / 2e6,
        forgetting={
            "en": Forgetting(2.9, 2.9 + trainable / 5e8 + 0.004),
            "zh": Forgetting(4.1, 4.1 + trainable / 3e8 - 0.002),
        },
        curve=curve,
        training_losses=training,
        reused=seed == 1,
    )


def _outcomes(accuracy, held_out, hardness, chance) -> tuple[Outcome, ...]:
    outcomes = []
    for row, hard in zip(held_out, hardness, strict=True):
        right = statistics.NormalDist().inv_cdf(min(accuracy, 0.999)) > 0.8 * hard + chance.gauss(
            0, 0.6
        )
        wrong = [label for label in LABELS if label != row.reference]
        answer = row.reference if right else chance.choice(wrong)
        loss = max(0.01, 2.5 * (1 - accuracy) + 0.2 * hard + chance.gauss(0, 0.1))
        outcomes.append(Outcome(loss, 4, answer, {"accuracy": float(right)}))
    return tuple(outcomes)


def _metrics(outcomes) -> dict[str, float]:
    loss = mean_loss(outcomes)
    accuracy = statistics.fmean(item.scores["accuracy"] for item in outcomes)
    return {
        "accuracy": accuracy,
        "macro_f1": accuracy - 0.01,
        "loss": loss,
        "perplexity": math.exp(loss),
    }


def _interval(values) -> tuple[float, float, float]:
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _pair(one, other, table) -> Pair:
    mean, low, high = _interval([a - b for a, b in zip(table[one], table[other], strict=True)])
    error = (high - low) / 3.92 or 1e-9
    p = 2 * (1 - statistics.NormalDist().cdf(abs(mean) / error))
    return Pair(one, other, mean, low, high, p, p)


def _holm(pairs) -> list[Pair]:
    ordered = sorted(pairs, key=lambda pair: pair.p)
    found, least = {}, 0.0
    for index, pair in enumerate(ordered):
        least = max(least, min(1.0, pair.p * (len(pairs) - index)))
        found[pair.one, pair.other] = Pair(
            pair.one, pair.other, pair.difference, pair.low, pair.high, pair.p, least
        )
    return [found[pair.one, pair.other] for pair in pairs]


def _spread(comparison, method, metric) -> SeedSpread:
    means = {
        arm.seed: statistics.fmean(comparison.values(arm, metric))
        for arm in comparison.arms_of(method)
        if arm.seed is not None
    }
    deviation = statistics.stdev(means.values()) if len(means) > 1 else None
    return SeedSpread(means, deviation, min(means.values()), max(means.values()))
