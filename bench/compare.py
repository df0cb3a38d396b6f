"""What a comparison reports, held against other measurements of the same.

    python bench/compare.py rows --data DIR --out DIR
    python bench/compare.py external --run RUN --workspace DIR
    python bench/compare.py joint --run RUN --other RUN
    python bench/compare.py paired --run RUN

- `rows` writes the SNIPS rows of the issue: 30 training rows for each of 7 intents, 20 held out.
- `external` trains each method of a comparison once more with `onebase train`, as the only training of a
  process that is measured from outside (wait4), and compares memory and time.
- `joint` compares the held-out losses of one run, trained alone, with those of another, trained together.
- `paired` counts the differences that the paired test finds and an unpaired one (Welch's, same correction)
  misses.

RUN is the folder of a finished comparison; `external` needs one with --held-out, so that `train` has the
same rows.
"""

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path

from scipy.stats import ttest_ind

from onebase.compare.evidence import Evidence
from onebase.compare.record import load
from onebase.compare.result import Comparison
from snips_onebase import rows_of

MAIN = "import sys; from onebase.cli.app import main; sys.exit(main())"


def write_rows(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, file, each in (("train", "snips_train", 30), ("held", "snips_validate", 20)):
        rows = rows_of(data / f"{file}.jsonl", each)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"snips-{name}.jsonl").write_text(text, encoding="utf-8")


def external(comparison: Comparison, workspace: Path) -> None:
    job = comparison.config["job"]
    for arm in comparison.arms:
        if arm.cost is None:
            continue
        command = [sys.executable, "-c", MAIN, "train", "--task", arm.method]
        command += ["--data", job["data"], "--method", arm.method, "--seed", str(arm.seed)]
        command += ["--base", comparison.base, "--workspace", str(workspace), "--restart"]
        command += ["--instruction", job["instruction"]] if job["instruction"] else []
        for key, value in job["set"].items():
            command += ["--set", f"{key}={value}"]
        began = time.perf_counter()
        child = os.spawnv(os.P_NOWAIT, sys.executable, command)
        _, status, usage = os.wait4(child, 0)
        seconds, memory = time.perf_counter() - began, usage.ru_maxrss * 1024
        result = {
            "method": arm.method,
            "status": status,
            "seconds": [arm.cost.seconds, seconds, arm.cost.seconds / seconds],
            "memory": [arm.cost.peak_memory_bytes, memory, arm.cost.peak_memory_bytes / memory],
            "cpu_seconds": [arm.cost.cpu_seconds, usage.ru_utime + usage.ru_stime],
        }
        print(json.dumps(result), flush=True)


def joint(alone: Comparison, together: Comparison) -> None:
    others = {(arm.method, arm.seed): arm for arm in together.arms}
    for arm in alone.arms:
        other = others.get((arm.method, arm.seed))
        if other is None or not arm.outcomes:
            continue
        rows = [
            abs(one.loss - two.loss) for one, two in zip(arm.outcomes, other.outcomes, strict=True)
        ]
        answers = sum(
            one.answer != two.answer for one, two in zip(arm.outcomes, other.outcomes, strict=True)
        )
        result = {
            "method": arm.method,
            "alone": arm.metrics["loss"],
            "together": other.metrics["loss"],
            "difference": abs(arm.metrics["loss"] - other.metrics["loss"]),
            "largest_of_a_row": max(rows),
            "other_answers": answers,
        }
        print(json.dumps(result), flush=True)


def paired(comparison: Comparison) -> None:
    evidence = Evidence.of(comparison)
    pairs = evidence.summary.verdict.pairs
    values = {
        method: [
            sum(row) / len(row)
            for row in zip(
                *(comparison.values(arm, evidence.metric) for arm in comparison.arms_of(method)),
                strict=True,
            )
        ]
        for method in comparison.methods
        if comparison.arms_of(method)
    }
    unpaired = {
        (one, other): float(ttest_ind(values[one], values[other], equal_var=False).pvalue)
        for one, other in itertools.combinations(values, 2)
    }
    found, worst = {}, 0.0
    for rank, key in enumerate(sorted(unpaired, key=lambda key: unpaired[key])):
        worst = max(worst, min(1.0, (len(unpaired) - rank) * unpaired[key]))  # Holm
        found[frozenset(key)] = worst
    for pair in pairs:
        other = found[frozenset((pair.one, pair.other))]
        only = "only the paired test" if pair.decided and other >= 0.05 else ""
        print(pair.one, pair.other, f"{pair.difference:+.3f}", f"paired {pair.p_holm:.4f}", end=" ")
        print(f"unpaired {other:.4f}", only)
    decided = sum(pair.decided for pair in pairs)
    print(f"{len(pairs)} pairs: paired {decided}, unpaired {sum(p < 0.05 for p in found.values())}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["rows", "external", "joint", "paired"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--workspace", type=Path)
    arguments = parser.parse_args()
    if arguments.part == "rows":
        write_rows(arguments.data, arguments.out)
        return
    comparison = load(arguments.run)
    if arguments.part == "external":
        external(comparison, arguments.workspace)
    elif arguments.part == "joint":
        joint(comparison, load(arguments.other))
    else:
        paired(comparison)


if __name__ == "__main__":
    main()
