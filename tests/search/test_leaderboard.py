"""The ladder of a race: its order, its table in plain values, and its picture."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from onebase.search.leaderboard import (
    Entry,
    Evaluation,
    Stop,
    draw_leaderboard,
    ranked,
    write_leaderboard,
)
from onebase.search.space import Configuration


def entry(
    number: int,
    rungs: list[float],
    stop: Stop | None = None,
    method: str = "lora",
    late: float | None = None,
) -> Entry:
    evaluations = [
        Evaluation(rung, 10 * 2**rung, 400 * 2**rung, loss, 16)
        for rung, loss in enumerate(rungs, start=1)
    ]
    if late is not None:
        evaluations.append(Evaluation(None, 160, 6400, late, 60))
    training_losses = [(100 * step, 4.0 / step + number / 50) for step in range(1, 9 * len(rungs))]
    return Entry(
        Configuration(number, method, {"rank": number}), evaluations, training_losses, 10, 400, stop
    )  # fmt: skip


def climbed() -> list[Entry]:
    return [
        entry(1, [1.0], Stop(1, "pruned")),
        entry(2, [0.9, 0.8], Stop(2, "pruned"), "p-tuning"),
        entry(3, [], Stop(1, "exploded"), "ia3"),
        entry(4, [0.7, 0.6, 0.5], late=0.4),
        entry(5, [0.9], Stop(1, "pruned"), "prompt-tuning"),
        entry(6, [0.3, 0.9], Stop(2, "pruned"), "p-tuning-v2"),
        entry(7, [1.0], Stop(1, "pruned")),
    ]


def test_who_came_further_stands_higher() -> None:
    found = [item.configuration.number for item in ranked(climbed())]
    assert found == [4, 2, 6, 5, 1, 7, 3]


def test_who_has_not_left_stands_highest() -> None:
    """Where a race ended early, its best may not have been the best at the last rung."""
    stopped = [entry(1, [0.5], Stop(2, "stopped")), entry(2, [0.6])]
    assert [item.configuration.number for item in ranked(stopped)] == [2, 1]


def test_it_is_written_in_plain_values(tmp_path: Path) -> None:
    file = tmp_path / "ladder.json"
    write_leaderboard(file, ranked(climbed()), task="文", end="finished")
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert (saved["task"], saved["end"]) == ("文", "finished")
    assert saved["ladder"][0] == {
        "rank": 1,
        "number": 4,
        "method": "lora",
        "settings": {"rank": 4},
        "losses": [
            {"rung": 1, "step": 20, "tokens": 800, "loss": 0.7, "rows": 16},
            {"rung": 2, "step": 40, "tokens": 1600, "loss": 0.6, "rows": 16},
            {"rung": 3, "step": 80, "tokens": 3200, "loss": 0.5, "rows": 16},
            {"rung": None, "step": 160, "tokens": 6400, "loss": 0.4, "rows": 60},
        ],
        "step": 10,
        "tokens": 400,
        "left": None,
    }
    assert saved["ladder"][-1]["left"] == {"rung": 1, "reason": "exploded"}


LORA = (0x00, 0x72, 0xB2)


def colours(file: Path) -> set[tuple[int, ...]]:
    with Image.open(file) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (1200, 720)
        found = picture.convert("RGB").getcolors(1 << 24)
    assert found is not None
    return {colour for _, colour in found}  # type: ignore[misc]


def test_it_is_drawn_in_a_colour_a_method(tmp_path: Path) -> None:
    draw_leaderboard(tmp_path / "ladder.png", ranked(climbed()), base_loss=3.0)
    shown = colours(tmp_path / "ladder.png")
    # In the order of the numbers: lora, p-tuning, ia3 (exploded at once), prompt-tuning, v2.
    for red_green_blue in ("0072b2", "e69f00", "009e73", "cc79a7", "56b4e9"):
        assert tuple(bytes.fromhex(red_green_blue)) in shown


@pytest.mark.parametrize(
    "entries",
    [
        [entry(1, [0.5, 0.4])],
        [entry(1, []), entry(2, [], Stop(1, "stopped"))],
        [entry(1, [1e-9, 1e-12])],
        [entry(1, [0.0, 0.0])],
        [
            Entry(
                Configuration(1, "lora", {"init_text": "从 $\\x{$ 开始"}),
                [Evaluation(1, 2, 80, 2.0, 5)],
            )
        ],
    ],
    ids=["one", "not judged", "small", "zero", "Chinese and a formula"],
)
@pytest.mark.parametrize("base_loss", [None, 2.5])
def test_whatever_there_is_is_drawn(
    entries: list[Entry], base_loss: float | None, tmp_path: Path
) -> None:
    """Without a warning: a font without Chinese would give one."""
    draw_leaderboard(tmp_path / "ladder.png", entries, base_loss)
    assert LORA in colours(tmp_path / "ladder.png")


def test_a_loss_beyond_all_bounds_is_no_obstacle(tmp_path: Path) -> None:
    wild = entry(1, [0.5, 0.4])
    wild.training_losses.append((900, 1e30))
    draw_leaderboard(tmp_path / "ladder.png", [wild], math.nan)
    assert LORA in colours(tmp_path / "ladder.png")
