"""PPO's curves as one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = {
    "reward": ("reward", "eval_reward"),
    "KL (nats an answer)": ("kl", "eval_kl"),
    "entropy (nats a token)": ("entropy",),
    "clip fraction": ("clip_fraction",),
    "explained variance": ("explained_variance",),
    "answer length (tokens)": ("length", "eval_length"),
}


def draw_curves(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw the measurements of a run, lines of its metrics.jsonl, into a PNG file."""
    # Late: it takes a second, and only a run's end needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    for place, (title, keys) in enumerate(PANELS.items(), start=1):
        axes = figure.add_subplot(2, 3, place)
        for key in keys:
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                held_out = key.startswith("eval_")
                axes.plot(
                    *zip(*points, strict=True),
                    label="held out" if held_out else "rollouts",
                    marker="o" if held_out else None,
                )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
        if len(keys) > 1 and axes.has_data():
            axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)
