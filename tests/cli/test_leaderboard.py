"""The leaderboard of a race as a table."""

import pytest

from onebase.cli.leaderboard import leaderboard_rows
from onebase.search.budget import Size, plan
from onebase.search.leaderboard import Entry, Evaluation, Stop
from onebase.search.space import Configuration


def entry(number: int, stop: Stop | None, continued_from: int | None = None) -> Entry:
    evaluations = [Evaluation(1, 10, 400, 0.5, 16)]
    return Entry(Configuration(number, "lora"), evaluations, [], 10, 400, stop, continued_from)


@pytest.mark.parametrize(
    ("language", "texts"),
    [
        (
            "C",
            ["continued from 1/4", "end, continued from 1/12", "1/2, exploded, continued from 1/4"],
        ),
        ("zh_CN.UTF-8", ["自 1/4 处继续", "终点、自 1/12 处继续", "1/2、损失发散、自 1/4 处继续"]),
    ],
)
def test_it_says_who_was_continued(
    language: str, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", language)
    entries = [
        entry(1, None, 2),
        entry(2, Stop(4, "outdone"), 1),
        entry(3, Stop(3, "exploded"), 2),
        entry(4, Stop(1, "pruned")),
        entry(5, None),
    ]
    rows = leaderboard_rows(plan(12, 3, Size(400, 40, 100, 10)), entries)
    assert [row[-2] for row in rows] == [*texts, "1/12", ""]
