"""What is raced: the default space, a space of one's own, and what is refused."""

from pathlib import Path

import pytest

from onebase.adapters.methods import METHODS
from onebase.errors import UsageError
from onebase.search.space import Space, default_space, read_space
from onebase.training.job import Job


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


def texts(space: Space) -> list[str]:
    return [item.text for item in space.configurations]


def read(folder: Path, text: str) -> Space:
    file = folder / "space.yaml"
    file.write_text(text, encoding="utf-8")
    return read_space(file)


def test_the_first_of_a_method_is_its_default() -> None:
    space = default_space()
    seen: set[str] = set()
    for item in space.configurations:
        if item.method not in seen:
            assert item.settings == {}
        seen.add(item.method)
    five = {"lora", "p-tuning-v2", "prompt-tuning", "p-tuning", "ia3"}
    assert seen == {*five, "lora+p-tuning-v2"}
    assert {item.method for item in space.first(5)} == five


@pytest.mark.parametrize(
    ("count", "of_lora", "methods"), [(6, 2, 5), (12, 3, 6), (24, 7, 6), (48, 12, 6)]
)
def test_it_is_spread_over_the_methods(count: int, of_lora: int, methods: int) -> None:
    chosen = default_space().first(count)
    assert [item.number for item in chosen] == list(range(1, count + 1))
    assert len({item.text for item in chosen}) == count
    assert sum(item.method == "lora" for item in chosen) == of_lora
    assert len({item.method for item in chosen}) == methods


def test_every_configuration_can_be_trained() -> None:
    for methods in ([], [*METHODS], ["lora+prompt-tuning+p-tuning-v2"]):
        configurations = default_space(methods).configurations
        assert configurations
        for item in configurations:
            Job("t", "d", item.method, set=item.settings).options()


def test_learning_rates_stand_around_the_method_s_own() -> None:
    rate = METHODS["lora"].learning_rate
    found = {
        item.settings.get("learning_rate", rate) for item in default_space(["lora"]).configurations
    }
    assert found == {rate, 2 * rate, rate / 2, 4 * rate}
    # The nearest first: the rate, then the rank, each alone before both.
    assert texts(default_space(["lora"]))[:5] == [
        "lora",
        "lora learning_rate=0.004",
        "lora rank=16 alpha=32.0",
        "lora learning_rate=0.001",
        "lora learning_rate=0.004 rank=16 alpha=32.0",
    ]


def test_methods_can_be_chosen_and_joined() -> None:
    space = default_space(["prefix-tuning", "ia3", "lora+p-tuning"])
    assert {item.method for item in space.configurations} == {
        "p-tuning-v2",
        "ia3",
        "lora+p-tuning",
    }
    assert "lora+p-tuning lora.rank=16 lora.alpha=32.0" in texts(space)
    assert not any("learning_rate" in text for text in texts(default_space(["lora+p-tuning"])))


def test_what_is_given_for_all_does_not_vary() -> None:
    assert texts(default_space(["lora"], fixed=["learning_rate"])) == [
        "lora",
        "lora rank=16 alpha=32.0",
        "lora rank=4 alpha=8.0",
    ]
    joined = texts(default_space(["lora+p-tuning"], fixed=["rank"]))
    assert not any("rank" in text for text in joined)


def test_a_space_of_methods_and_values(tmp_path: Path) -> None:
    space = read(
        tmp_path,
        "lora: {rank: [2, 4], learning_rate: [1e-3, 0.002]}\n"
        "prefix-tuning: {virtual_tokens: [5, 7], init: vocab}\n"
        "ia3:\n",
    )
    assert texts(space) == [
        "lora rank=2 learning_rate=0.001",
        "p-tuning-v2 virtual_tokens=5 init=vocab",
        "ia3",
        "lora rank=4 learning_rate=0.001",
        "p-tuning-v2 virtual_tokens=7 init=vocab",
        "lora rank=2 learning_rate=0.002",
        "lora rank=4 learning_rate=0.002",
    ]
    # YAML reads 1e-3 as a text, which would stand in the run's config as one.
    rates = [
        item.settings["learning_rate"]
        for item in space.configurations
        if len(item.settings) == 2 and item.method == "lora"
    ]
    assert [(type(rate), rate) for rate in rates] == [(float, 1e-3)] * 2 + [(float, 2e-3)] * 2


def test_a_space_as_a_list_keeps_its_order_and_drops_what_comes_twice(tmp_path: Path) -> None:
    space = read(
        tmp_path,
        "- {method: ia3}\n- {method: lora, set: {rank: 2}}\n- {method: ia3}\n- {method: lora}\n",
    )
    assert [(item.number, item.text) for item in space.configurations] == [
        (1, "ia3"),
        (2, "lora rank=2"),
        (3, "lora"),
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lara: {rank: [2]}", "Unknown method: 'lara'.*lora"),
        ("lora: {rnak: [2]}", "Unknown setting of lora: 'rnak'.*'rank'"),
        ("lora: {rank: [2, -1]}", "rank=-1 is not valid"),
        ("lora: {rank: []}", "lora has no value for rank"),
        ("lora: 3", r"is not a search space: \{'lora': 3\}"),
        ("- lora", "is not a search space: 'lora'"),
        ("- {method: lora, sets: {rank: 2}}", "Unknown key of a configuration: 'sets'.*'set'"),
        ("- {set: {rank: 2}}", "is not a search space"),
        ("[]", "is not a search space"),
        ("", "is not a search space: None"),
        ("3: {rank: [2]}", "is not a search space: 3"),
        ("lora: {epochs: [2, 3]}", "epochs must be the same.*--set epochs="),
        ("lora: {held_out: 0.2}", "held_out must be the same"),
        ("lora: {trunk: [fp16, fp32]}", "trunk must be the same"),
        ("lora: {rank: [2}", "is not YAML"),
    ],
)
def test_a_wrong_space_is_refused(text: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=named):
        read(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml can't be read: No such file"):
        read_space(tmp_path / "none.yaml")


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'lroa'.*lora"):
        default_space(["lroa"])


@pytest.mark.parametrize(
    ("count", "named"), [(4, "has 3 configurations, not 4"), (1, "A race of 1 configuration")]
)
def test_more_than_there_are_and_less_than_a_race(count: int, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        default_space(["ia3"]).first(count)
