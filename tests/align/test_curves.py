"""The curves of a run as a picture."""

from pathlib import Path

from onebase.align.curves import PANELS, draw_curves


def test_a_picture_of_whatever_was_measured(tmp_path: Path) -> None:
    lines = [{"step": step, "reward": step / 3, "kl": 0.1 * step} for step in range(5)]
    lines += [{"step": 0, "eval_reward": 0.1}, {"note": "a word"}, {"step": 4, "eval_reward": 1.0}]
    draw_curves(tmp_path / "curves.png", lines)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    draw_curves(tmp_path / "empty.png", [])
    assert (tmp_path / "curves.png").stat().st_size > (tmp_path / "empty.png").stat().st_size
    assert len(PANELS) == 6
