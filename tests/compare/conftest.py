"""A made-up comparison: nine methods on a classification, with costs, curves and hostile texts; and
what a small real one needs: a base, jobs, a workspace.
"""

import math
import random
import signal
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.compare.tiny_comparison import SETTINGS, labelled_rows, spoken, written

from onebase.adapters.workspace import Workspace
from onebase.compare.evidence import Evidence
from onebase.compare.report.document import Document
from onebase.compare.report.report import report_document
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
from onebase.language import Language, set_language
from onebase.model.base import Base
from onebase.training.job import Job

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
        config={
            "command": "onebase compare -c config.yaml",
            "seeds": [1, 2, 3],
            "set": {"epochs": 3},
        },
        seconds=1460.0,
        cpu_seconds=2710.0,
        machine={"processor": "2 cores", "versions": {"onebase": "0.1.0", "torch": "2.13.0"}},
        phases={"loading": 4.0, "training": 620.0, "scoring": 210.0, "alone": 601.0},
    )


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    return made_up()


@pytest.fixture
def make() -> Callable[..., Comparison]:
    return made_up


@pytest.fixture(scope="session")
def evidence(comparison: Comparison) -> Evidence:
    return Evidence.of(comparison)


@pytest.fixture(scope="session")
def documents(evidence: Evidence) -> dict[Language, Document]:
    """The report in each language."""
    found = {}
    for one, other, file in (("en", "中文", "report.zh"), ("zh", "English", "report")):
        set_language(one)
        found[one] = report_document(evidence, ((other, file),))
    return found


@pytest.fixture(autouse=True)
def _english_and_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LC_ALL", "C")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def base(tiny_folder: Path) -> Base:
    return Base.load(str(tiny_folder))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return spoken(tmp_path)


@pytest.fixture
def labelled(tmp_path: Path) -> Job:
    file = written(tmp_path / "labels.jsonl", labelled_rows())
    return Job("late", file, instruction="Late?", set=SETTINGS)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


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
