"""Near-duplicates between training and held-out rows of real sets: how many, at which similarity, which.

    python bench/near_duplicates.py --data DIR [--show 20] [--speed]

SNIPS and Banking77 have held-out files of their own; of the others a quarter of the inputs is held out, by five
seeds (the counts are means). `--show` prints pairs of every set on both sides of the threshold. `--speed` takes the
time and memory of 10,000 training rows and 1,000 held-out rows.
"""

import argparse
import random
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from onebase.compare.near_duplicates import THRESHOLD, near_duplicates
from onebase.compare.result import Kind
from onebase.data.example import Example
from onebase.data.formats import load_dataset
from onebase.data.split import split

THRESHOLDS = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
Parts = tuple[tuple[Example, ...], tuple[Example, ...]]
COLUMNS = {"e2e_dev.jsonl": {"input": "mr", "output": "ref"}}
SETS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "SNIPS": ("classification", ("snips_train.jsonl", "snips_validate.jsonl")),
    "Banking77": ("classification", ("banking77_train.jsonl", "banking77_test.jsonl")),
    "ADGEN": ("generation", ("adgen_dev.jsonl",)),
    "E2E": ("generation", ("e2e_dev.jsonl",)),
    "GSM8K": ("generation", ("gsm8k_test.jsonl",)),
    "Alpaca, Chinese": ("generation", ("alpaca_zh.json",)),
    "Alpaca, English": ("generation", ("alpaca_en.json",)),
}


def parts(folder: Path, files: tuple[str, ...]) -> Iterator[Parts]:
    """Training and held-out rows: of two files, or of one that is split by five seeds."""
    read = [load_dataset(folder / file, columns=COLUMNS.get(file)) for file in files]
    if len(read) == 2:
        yield read[0].examples, read[1].examples
        return
    for seed in range(5):
        training, held_out = split(read[0], 0.25, seed)
        yield training.examples, held_out.examples


def count(folder: Path, show: int) -> None:
    print("set, held-out rows, near-duplicates at", *THRESHOLDS)
    for name, (kind, files) in SETS.items():
        counts, shown = [], []
        for training, held_out in parts(folder, files):
            found = near_duplicates(held_out, training, kind, min(THRESHOLDS))
            counts.append([sum(pair.similarity >= at for pair in found) for at in THRESHOLDS])
            rows = {f"{row.file}:{row.line}": row for row in (*training, *held_out)}
            shown = shown or [
                (pair.similarity, rows[pair.held_out], rows[pair.training]) for pair in found
            ]
        means = [f"{statistics.mean(column):g}" for column in zip(*counts, strict=True)]
        print(name, len(held_out), *means, sep="\t")
        shown.sort(key=lambda pair: abs(pair[0] - THRESHOLD))
        for similarity, one, other in sorted(shown[:show], key=lambda pair: -pair[0]):
            print(f"   {similarity:.2f}  {one.input!r} -> {one.answer!r}")
            print(f"         {other.input!r} -> {other.answer!r}")


def measure(folder: Path) -> None:
    """10,000 against 1,000 rows, with rows of all sets, and with E2E's template alone."""
    files = [file for _, both in SETS.values() for file in both]
    rows = [
        row
        for file in files
        for row in load_dataset(folder / file, columns=COLUMNS.get(file)).examples
    ]
    chosen = random.Random(0)
    chosen.shuffle(rows)
    training, held_out = next(parts(folder, ("e2e_dev.jsonl",)))
    cases: list[tuple[str, Kind, Parts]] = [
        ("all sets", "generation", (tuple(rows[:10_000]), tuple(rows[10_000:11_000]))),
        ("E2E, repeated", "generation", ((training * 7)[:10_000], (held_out * 2)[:1_000])),
    ]
    for name, kind, (many, few) in cases:
        began = time.process_time()
        found = near_duplicates(few, many, kind)
        seconds = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{name}: {len(many)} x {len(few)} rows, {len(found)} found, {seconds:.1f} s of CPU, the process's peak {peak:.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--show", type=int, default=0, help="pairs of each set to print")
    parser.add_argument("--speed", action="store_true", help="measure time and memory instead")
    arguments = parser.parse_args()
    if arguments.speed:
        measure(arguments.data)
    else:
        count(arguments.data, arguments.show)


if __name__ == "__main__":
    main()
