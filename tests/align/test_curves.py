"""The curves of a run as a picture."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from onebase.align.curves import PANELS, draw_curves


def test_a_picture_of_whatever_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **settings: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", savefig)
    lines = [{"step": step, "reward": step / 3, "kl": 0.1 * step} for step in range(5)]
    lines += [{"step": 0, "eval_reward": 0.1}, {"note": "a word"}, {"step": 4, "eval_reward": 1.0}]
    draw_curves(tmp_path / "curves.png", lines)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    reward, kl, *others = figures[0].axes
    assert [axes.get_title() for axes in figures[0].axes] == list(PANELS)
    assert {line.get_label(): line.get_xydata().tolist() for line in reward.lines} == {
        "rollouts": [[step, step / 3] for step in range(5)],
        "held out": [[0, 0.1], [4, 1.0]],
    }
    (line,) = kl.lines
    assert line.get_xydata().tolist() == [[step, 0.1 * step] for step in range(5)]
    assert not any(axes.lines for axes in others)
    draw_curves(tmp_path / "empty.png", [])
    assert (tmp_path / "empty.png").read_bytes().startswith(b"\x89PNG")
    assert not any(axes.lines for axes in figures[1].axes)
