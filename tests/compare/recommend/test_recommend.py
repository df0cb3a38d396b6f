"""Recommendations: given measurements in, the expected method or the expected refusal out."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
from tests.compare.comparison_builder import TYPICAL, Costs, compared, near_duplicate

from onebase.adapters.methods import METHODS
from onebase.adapters.workspace import Workspace
from onebase.compare.evidence import Evidence
from onebase.compare.recommend.costs import COSTS
from onebase.compare.recommend.grounds import beats_all, better_than, costs
from onebase.compare.recommend.limits import Limits
from onebase.compare.recommend.next_command import Asked, recommend_command
from onebase.compare.recommend.preferences import GOALS, PREFERENCES, SCENARIOS, preference_named
from onebase.compare.recommend.recommend import decide, recommend
from onebase.compare.recommend.recommendation import PlannedCost, Question, Recommendation
from onebase.compare.result import Comparison
from onebase.errors import UsageError
from onebase.language import set_language
from onebase.training.options import TrainOptions

# The base's rows: what a method has to beat.
BARE = {"base": 0.30, "base+examples": 0.50}
# Three that 140 rows cannot tell apart, above two that they can.
TIED = {**BARE, "lora": 0.90, "ia3": 0.89, "p-tuning-v2": 0.885}
FIELD = {**TIED, "prompt-tuning": 0.75}
NONE = None


@dataclass(frozen=True)
class Scenario:
    """A question, what was measured, and the method expected (None: a refusal); `says` are words of the
    reasons.
    """

    name: str
    expected: str | None
    accuracy: dict[str, float] = field(default_factory=dict)
    ask: str = "quality"
    limits: Limits = field(default_factory=Limits)
    says: tuple[str, ...] = ()
    costs: dict[str, Costs] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def at_most(**limits: float) -> Limits:
    """Limits in MB, s and kB."""
    units = {"megabytes": ("peak_memory_bytes", 1e6), "kilobytes": ("adapter_bytes", 1e3)}
    named = {units.get(key, (key, 1)): value for key, value in limits.items()}
    return Limits(**{name: unit * value for (name, unit), value in named.items()})


def but(method: str, **changed: float | None) -> dict[str, Costs]:
    """The typical costs of a method, with some of them changed."""
    return {method: replace(TYPICAL[method], **changed)}


# fmt: off
TABLE = [
    # One method is better than all others.
    Scenario("clear winner", "lora", {**BARE, "lora": .92, "ia3": .70, "prompt-tuning": .68},
             says=("lora is better than every other", "lora: accuracy 0.921 [", "140 rows, 3 seeds, run 2026")),
    Scenario("only one was compared", "ia3", {**BARE, "ia3": .80}, says=("No method but ia3",)),
    # Three tie. Each goal and each scenario takes its own.
    Scenario("quality", "p-tuning-v2", FIELD, "quality",
             says=("lora, ia3, p-tuning-v2 cannot be told apart on 140 rows", "the lowest peak memory")),
    Scenario("speed", "p-tuning-v2", FIELD, "speed", says=("the shortest training: p-tuning-v2 90 s",)),
    Scenario("size", "ia3", FIELD, "size",
             says=("ia3 has the smallest adapter: ia3 120 kB, p-tuning-v2 900 kB, lora 3.40 MB",)),
    Scenario("best quality", "lora", FIELD, "best-quality",
             says=("cannot be told apart", "lora has the best mean; the rows do not show")),
    Scenario("research", "lora", FIELD, "research", says=("lora, ia3, p-tuning-v2 cannot be told apart",)),
    Scenario("balance", "p-tuning-v2", FIELD, "balance", says=("Left out", "clearly cheaper")),
    Scenario("little memory", "qlora", {**FIELD, "qlora": .88}, "little-memory", says=("qlora 600 MB",)),
    Scenario("quick prototype", "p-tuning", {**TIED, "p-tuning": .88}, "quick-prototype",
             says=("p-tuning 50 s",)),
    Scenario("many tasks", "ia3", FIELD, "many-tasks", says=("the smallest adapter",)),
    Scenario("production", "ia3", FIELD, "production", says=("ia3 95 tokens/s",)),
    # Costs within the noise are equal: the next cost decides.
    Scenario("speeds within the noise", "ia3", {**TIED, "full": .895}, "production",
             says=("ia3, full are within 10 % of the fastest answers", "ia3 has the shortest load time")),
    Scenario("all costs equal", "lora", {**BARE, "lora": .90, "ia3": .89}, "speed",
             costs={"ia3": TYPICAL["lora"]}, says=("lora has the best mean",)),
    Scenario("a cost that nobody measured", "ia3", {**BARE, "lora": .90, "ia3": .89}, "production",
             costs={**but("lora", speed=None), **but("ia3", speed=None)},
             says=("Their speed of answering was not measured", "the shortest load time")),
    Scenario("a cost that one did not measure", "lora", {**BARE, "lora": .90, "ia3": .89}, "production",
             costs=but("ia3", speed=None), says=("ia3 not measured",)),
    # A cheaper method that is worse is not taken; what it would save is said.
    Scenario("smallest but worse", "ia3", FIELD, "size",
             says=("prompt-tuning: worse than ia3", "its adapter size is 40.0 kB, that of ia3 120 kB")),
    Scenario("smallest but no better than the base", "lora",
             {**BARE, "lora": .90, "prompt-tuning": .49}, "size",
             says=("prompt-tuning: not shown to be better than the base with examples",)),
    # Limits go by what was measured of a method alone.
    Scenario("memory for the second best", "ia3", {**BARE, "lora": .92, "ia3": .75},
             limits=at_most(megabytes=1100),
             says=("lora: peak memory 1.20 GB, 100 MB over the limit of 1.10 GB", "No method but ia3")),
    Scenario("time", "prompt-tuning", FIELD, limits=at_most(seconds=60),
             says=("lora: training time 120 s, 60 s over the limit of 60 s",)),
    Scenario("size and memory", "p-tuning-v2", FIELD, limits=at_most(kilobytes=1000, megabytes=900)),
    Scenario("exactly the limit", "lora", {**BARE, "lora": .9}, limits=at_most(megabytes=1200)),
    Scenario("memory that was not measured", "ia3", {**BARE, "lora": .92, "ia3": .75},
             limits=at_most(megabytes=2000), costs=but("lora", megabytes=None),
             says=("lora: its peak memory alone was not measured, so 2.00 GB cannot be promised",)),
    Scenario("a seed diverged", "ia3", {**BARE, "lora": .92, "ia3": .75}, more={"diverged": ["lora"]},
             says=("lora: diverged with 1 of 3 seeds",)),
    # Refusals.
    Scenario("over every limit", NONE, TIED, limits=at_most(megabytes=500),
             says=("The nearest is p-tuning-v2: peak memory 800 MB, 300 MB over the limit of 500 MB",)),
    Scenario("over one limit or the other", NONE, TIED, limits=at_most(megabytes=900, kilobytes=300),
             says=("The nearest is ia3: peak memory 1.00 GB, 100 MB over",)),
    Scenario("what diverged is not the nearest", NONE, {**BARE, "lora": .92, "ia3": .75},
             limits=at_most(megabytes=900), costs=but("lora", megabytes=950), more={"diverged": ["lora"]},
             says=("The nearest is ia3", "lora: diverged with 1 of 3 seeds; peak memory 950 MB, 50.0 MB over")),
    Scenario("no memory was measured", NONE, {**BARE, "lora": .9}, limits=at_most(megabytes=900),
             costs=but("lora", megabytes=None), says=("cannot be promised",)),
    Scenario("no better than examples", NONE, {**BARE, "lora": .52, "ia3": .50},
             says=("Do not train on this evidence", "Compare again with more rows")),
    Scenario("worse than the base", NONE, {"base": .80, "base+examples": .85, "ia3": .50}, "size",
             says=("ia3: worse than the base with examples in its prompt, by −0.35",)),
    Scenario("too few rows", NONE, {"base": .50, "base+examples": .50, "lora": .75, "ia3": .75},
             more={"rows": 8}, says=("not shown to be better", "8 rows")),
    Scenario("only what is too large is better", NONE, {**BARE, "lora": .9, "prompt-tuning": .50},
             limits=at_most(megabytes=1000),
             says=("The nearest is lora: peak memory 1.20 GB", "prompt-tuning: not shown to be better")),
    Scenario("every seed diverged", NONE, {**BARE, "lora": .9}, more={"diverged": ["lora"], "seeds": 1},
             says=("lora: diverged with 1 of 1 seeds",)),
    Scenario("the base was not measured", NONE, {"lora": .9}, says=("bare base was not measured",)),
    Scenario("the length decides", NONE, TIED, more={"metric": "length"}, says=("neither better nor worse",)),
    Scenario("only the base", NONE, BARE, says=("No method was compared",)),
]
# fmt: on
NAMED = {scenario.name: scenario for scenario in TABLE}


def asked(comparisons: list[Comparison], **question: Any) -> Recommendation:
    return recommend(comparisons, Question(**question))


def said(made: Recommendation) -> str:
    return "\n".join(made.reasons)


def measured(scenario: Scenario) -> Comparison:
    return compared(scenario.accuracy, scenario.costs, **scenario.more)


@pytest.fixture(scope="module")
def evidence_of() -> Callable[[str], Evidence]:
    """The evidence of a scenario; its statistics are computed once."""
    return cache(lambda name: Evidence.of(measured(NAMED[name])))


@pytest.mark.parametrize("scenario", TABLE, ids=lambda scenario: scenario.name)
def test_the_expected_method_or_refusal(
    scenario: Scenario, evidence_of: Callable[[str], Evidence]
) -> None:
    evidence = evidence_of(scenario.name)
    made = decide(evidence, Question(limits=scenario.limits, preference=scenario.ask))
    assert made.method == scenario.expected, said(made)
    assert made.decision == ("method" if scenario.expected else "declined")
    for words in scenario.says:
        assert words in said(made)
    assert made.runs == (evidence.comparison.run,)
    assert all(reason.endswith(".") for reason in made.reasons)
    # Every method that was compared is the one, or it is said why not.
    trained = {method for method in scenario.accuracy if method in METHODS}
    if "neither better" not in said(made) and "bare base was not" not in said(made):
        assert made.excluded.keys() == trained - {made.method}
        assert all(
            any(text in reason for reason in made.reasons) for text in made.excluded.values()
        )


@pytest.mark.parametrize("scenario", TABLE, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("preference", PREFERENCES)
def test_a_method_keeps_to_every_limit_and_is_better_than_the_base(
    scenario: Scenario, preference: str, evidence_of: Callable[[str], Evidence]
) -> None:
    evidence = evidence_of(scenario.name)
    for limits in (scenario.limits, at_most(megabytes=950), at_most(seconds=95, kilobytes=500)):
        made = decide(evidence, Question(limits=limits, preference=preference))
        if made.method is None:
            continue
        measured_costs = costs(evidence, made.method)
        assert all(measured_costs[name] <= limit for name, limit in limits.given().items())
        assert beats_all(evidence, made.method, ["base", "base+examples"])
        assert not better_than(evidence, made.method, made.tied)


@pytest.mark.parametrize("scenario", TABLE, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("preference", PREFERENCES)
def test_more_memory_is_never_worse(
    scenario: Scenario, preference: str, evidence_of: Callable[[str], Evidence]
) -> None:
    evidence = evidence_of(scenario.name)
    memories = (100, 500, 600, 700, 800, 850, 900, 1000, 1100, 1200, 2000, 2400, 4000)
    taken = [
        decide(evidence, Question(limits=at_most(megabytes=memory), preference=preference)).method
        for memory in memories
    ]
    chosen = [method for method in taken if method]
    assert taken == [None] * (len(taken) - len(chosen)) + chosen  # once there is one, there is one
    for index, method in enumerate(chosen):
        assert not better_than(evidence, method, chosen[:index])
    if PREFERENCES[preference].pick == "best mean":
        means = [evidence.mean(method) for method in chosen]
        assert means == sorted(means, reverse=evidence.lower_is_better)


def test_lower_is_better_for_a_loss() -> None:
    made = asked([compared({**BARE, "lora": 0.92, "ia3": 0.7}, metric="loss")])
    assert made.method == "lora"
    assert "ia3: worse than lora, by +" in said(made)


def test_settings_and_command_are_those_that_were_compared() -> None:
    comparison = compared({**BARE, "lora": 0.9, "ia3": 0.6})
    job = {"instruction": "What's the mood?", "columns": {"input": "a b"}, "skip_bad": True}
    arms = tuple(
        replace(arm, settings={"rank": 4, "warmup": None, "packed": True, "learning_rate": 3e-4})
        if arm.trained
        else arm
        for arm in comparison.arms
    )
    config = {"job": job, "precision": "fp32"}
    made = asked([replace(comparison, arms=arms, config=config)], workspace=Workspace("my ws"))
    assert made.settings == {"rank": 4, "warmup": None, "packed": True, "learning_rate": 3e-4}
    assert shlex.split(made.next) == [
        *("onebase", "train", "--task", "mood", "--data", "mood.jsonl", "--method", "lora"),
        *("--base", "tiny", "--precision", "fp32", "--instruction", "What's the mood?"),
        *("--column", "input=a b", "--skip-bad", "--set", "rank=4", "--set", "packed=true"),
        *("--set", "learning_rate=0.0003", "--workspace", "my ws"),
    ]


def test_qlora_is_trained_in_a_precision_of_its_own() -> None:
    comparison = compared({**BARE, "qlora": 0.9})
    for precision, given in (("fp32", False), ("nf4:bf16", True)):
        made = asked([replace(comparison, config={"precision": precision})])
        assert ("--precision" in made.next) is given


@pytest.mark.parametrize(
    ("accuracy", "limits", "command"),
    [
        # qlora, p-tuning and prompt-tuning may keep to the limit, full does not.
        (TIED, at_most(megabytes=500), "--methods qlora,prompt-tuning,p-tuning"),
        # Where everything was tried: the limit that the nearest keeps to.
        (
            {**BARE, **dict.fromkeys(TYPICAL, 0.9)},
            at_most(megabytes=500.5, seconds=300),
            "onebase recommend --task mood --memory 600MB --time 300s",
        ),
    ],
)
def test_what_to_run_where_the_limits_are_too_low(
    accuracy: dict[str, float], limits: Limits, command: str
) -> None:
    made = asked([compared(accuracy)], limits=limits)
    assert made.method is None
    assert command in made.next
    if made.next.startswith("onebase recommend"):
        raised = at_most(megabytes=600, seconds=300)
        assert asked([compared(accuracy)], limits=raised).method == "qlora"


def test_a_limit_is_rounded_up() -> None:
    limits = at_most(megabytes=600.2, seconds=59.1, kilobytes=1.5)
    assert recommend_command("my task", None, limits, "balance", Workspace()) == (
        "onebase recommend --task 'my task' --memory 601MB --time 60s --adapter-size 2KB "
        "--scenario balance"
    )


def test_all_is_compared_again_where_a_cost_was_not_measured() -> None:
    unmeasured = {**but("lora", megabytes=None), **but("ia3", megabytes=None)}
    made = asked([compared({**BARE, "lora": 0.9}, unmeasured)], limits=at_most(megabytes=900))
    assert made.next.startswith("onebase compare ")
    assert "--methods" not in made.next


def test_defaults_are_not_typed() -> None:
    comparison = compared({**BARE, "lora": 0.9})
    settings = {
        "epochs": TrainOptions().epochs,
        "learning_rate": METHODS["lora"].learning_rate,
        "rank": 3,
        "seed": None,
    }
    arms = tuple(replace(arm, settings=settings) for arm in comparison.arms)
    made = asked([replace(comparison, arms=arms)])
    assert made.settings == settings
    assert re.findall(r"--set (\S+)", made.next) == ["rank=3"]


def test_the_same_options_again() -> None:
    options = {"seeds": 5, "share": 0.3, "metric": "accuracy", "user_metric": None, "methods": []}
    config = {"job": {"set": {"lora.rank": 4}}, "compare": options}
    made = asked([replace(compared(BARE), config=config)])
    assert made.next == (
        "onebase compare --task mood --data mood.jsonl --base tiny --set lora.rank=4 --seeds 5 "
        "--metric accuracy"
    )


def test_nothing_was_measured() -> None:
    made = asked([])
    assert made.decision == "declined"
    assert made.next == "onebase compare --task TASK --data FILE"
    assert (made.method, made.settings, made.runs) == (None, {}, ())
    other = asked([compared(FIELD)], task="news")
    assert "news was not compared in this workspace. Compared: mood." in said(other)
    assert other.next == "onebase compare --task news --data FILE"
    known = asked([], known=Asked("news", "n.jsonl", "tiny"))
    assert known.next == "onebase compare --task news --data n.jsonl --base tiny"


def test_several_tasks() -> None:
    comparisons = [compared(FIELD, task="news"), compared(FIELD, task="mood")]
    made = asked(comparisons, preference="size", limits=at_most(kilobytes=500))
    assert made.method is None
    assert "2 tasks were compared here: news, mood" in said(made)
    assert made.next == "onebase recommend --task mood --adapter-size 500KB --goal size"
    assert asked(comparisons, task="news").method == "p-tuning-v2"


def test_another_base() -> None:
    made = asked([compared(FIELD)], base="large")
    assert made.method is None
    assert "mood was compared on tiny, not on large" in said(made)
    assert "--base large" in made.next
    assert asked([compared(FIELD)], base="tiny").method == "p-tuning-v2"


def test_the_cost_of_the_comparison_comes_from_plan() -> None:
    calls = []

    def planner(asked: Asked, methods: Any) -> PlannedCost:
        calls.append((asked.data, tuple(methods)))
        return PlannedCost(("lora", "ia3"), 192.0, 1_300_000_000)

    for comparisons, question, data, methods in (
        ([], Question(known=Asked("mood", "m.jsonl")), "m.jsonl", ()),
        (
            [compared(TIED)],
            Question(limits=at_most(megabytes=500)),
            "mood.jsonl",
            ("qlora", "prompt-tuning", "p-tuning"),
        ),
        ([compared({**BARE, "ia3": 0.5})], Question(), "mood.jsonl", ()),
    ):
        made = recommend(comparisons, question, planner)
        assert "one training of lora, ia3 together takes 192 s and 1.30 GB at the peak" in said(
            made
        )
        assert calls.pop() == (data, methods)
    recommend([], Question(), planner)  # where the data are is not known
    recommend([compared(TIED)], Question(), planner)
    assert calls == []
    made = recommend(
        [], Question(known=Asked("a", "b")), lambda *_: PlannedCost(("full",), None, 4 * 10**9)
    )
    assert "takes at least 4.00 GB of memory" in said(made)


# Earlier comparisons of the same task.
OLD, NEW = "20261101-090000-0000", "20261128-100000-0001"


def test_methods_of_an_earlier_comparison_of_the_same_rows_join() -> None:
    earlier = compared({**BARE, "ia3": 0.95, "lora": 0.6}, run=OLD)
    newest = compared({**BARE, "lora": 0.7}, run=NEW)
    made = asked([earlier, newest])
    assert made.method == "ia3"
    assert made.runs == (NEW, OLD)
    assert "ia3: accuracy 0.950 [" in said(made)
    assert f"run {OLD}" in said(made)
    assert made.excluded["lora"].startswith("lora: worse than ia3, by −0.25")  # the newest's .70


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"base": "large"}, "on the base large, not tiny"),
        ({"rows_sha256": "b" * 64}, "on other rows"),
        ({"machine": {"device": "cpu", "threads": 8}}, "on another machine"),
        ({"settings": "tuned"}, "with tuned settings"),
        ({"metrics": ("length",)}, "it did not measure accuracy"),
    ],
)
def test_an_earlier_comparison_that_differs_is_left_out(
    changed: dict[str, Any], reason: str
) -> None:
    earlier = replace(compared({**BARE, "ia3": 0.95}, run=OLD), **changed)
    made = asked([earlier, compared({**BARE, "lora": 0.7}, run=NEW)])
    assert made.method == "lora"
    assert made.runs == (NEW,)
    assert f"Run {OLD} also compared ia3, but {reason}; it is left out." in made.reasons


def test_what_a_reader_has_to_know() -> None:
    comparison = compared(
        {**BARE, "lora": 0.9}, seeds=1, near_duplicates=(near_duplicate(3), near_duplicate(3))
    )
    made = asked([comparison], machine={"device": "cpu", "threads": 8})
    for text in (
        "Compared with their default settings; other settings may change the order.",
        "One seed per method: how far seeds differ is not known.",
        "1 held-out row is nearly the same as a training row, so the quality is likely too high.",
        "Not compared: full, qlora, ia3, prompt-tuning, p-tuning, p-tuning-v2.",
        "Measured on another machine (threads differ); memory and time may be others here.",
    ):
        assert text in made.reasons
    same = asked([replace(comparison, settings="tuned")], machine={"threads": 2, "device": "cpu"})
    assert "another machine" not in said(same)
    assert "default settings" not in said(same)


def test_a_method_with_one_seed_beside_others() -> None:
    earlier = compared({**BARE, "ia3": 0.9}, seeds=1, run=OLD)
    made = asked([earlier, compared({**BARE, "lora": 0.7}, run=NEW)])
    assert "Trained with one seed: ia3. How far seeds differ is unknown." in made.reasons


def test_the_worst_of_several_seeds_is_promised() -> None:
    comparison = compared({**BARE, "lora": 0.9})
    arms = list(comparison.arms)
    alone = next(arm for arm in arms if arm.cost)
    second = next(arm for arm in arms if arm.method == "lora" and arm.seed == 1)
    assert alone.cost
    heavier = replace(alone.cost, peak_memory_bytes=2 * 10**9)
    arms[arms.index(second)] = replace(second, cost=heavier)
    made = asked([replace(comparison, arms=tuple(arms))], limits=at_most(megabytes=1500))
    assert made.method is None
    assert "lora: peak memory 2.00 GB, 500 MB over" in said(made)


def test_the_costs_of_every_preference_are_known() -> None:
    assert set(GOALS) | set(SCENARIOS) == PREFERENCES.keys()
    for preference in PREFERENCES.values():
        assert set(preference.costs) <= COSTS.keys()
        assert bool(preference.costs) == (preference.pick != "best mean")


def test_the_name_of_a_preference() -> None:
    assert preference_named(None, None) == "quality"
    assert preference_named("size", None) == "size"
    assert preference_named(None, "production") == "production"
    for goal, scenario, words in (
        ("quality", "balance", "Both --goal and --scenario"),
        ("fast", None, "Valid: quality, size, speed"),
        (None, "producton", "Did you mean 'production'?"),
        ("production", None, "Unknown goal"),
    ):
        with pytest.raises(UsageError, match=words.replace("?", r"\?")):
            preference_named(goal, scenario)


def test_a_limit_is_above_nothing() -> None:
    with pytest.raises(UsageError, match="limit of 0 on the peak memory"):
        at_most(megabytes=0)


@pytest.fixture
def _chinese() -> Any:
    set_language("zh")
    yield
    set_language("en")


@pytest.mark.usefixtures("_chinese")
@pytest.mark.parametrize("scenario", TABLE, ids=lambda scenario: scenario.name)
def test_in_chinese(scenario: Scenario, evidence_of: Callable[[str], Evidence]) -> None:
    question = Question(limits=scenario.limits, preference=scenario.ask)
    made = decide(evidence_of(scenario.name), question)
    assert made.method == scenario.expected
    assert made.reasons
    for reason in made.reasons:
        assert reason.endswith("。"), reason
        assert any("一" <= character <= "鿿" for character in reason), reason
