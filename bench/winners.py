"""False winners, power and the minimum detectable effect in simulated comparisons.

    OMP_NUM_THREADS=1 python bench/winners.py [--comparisons 1000] [--only equal|power|detectable]

Five methods on the same rows. Row and method have normal latent variables; those of a row are shared by all
methods (correlation .8 between methods, as adapters of one base make the same mistakes), and the rows of a cluster have an
intra-cluster correlation of .3 (clusters of 1 to 5 rows). Right-or-wrong rows are the latent variable cut at a
proportion of .8; losses are its exponential. Rules beside ours: the best method's 95 % normal interval overlaps
no other one; the unpaired normal interval of its difference to the second excludes 0, with Holm's correction or without; and
the paired one does, without it. None of them knows of clusters.
"""

import argparse
from itertools import combinations

import numpy as np
from scipy.stats import norm

from onebase.compare.statistics.clusters import Clusters
from onebase.compare.statistics.paired import LEVEL, holm
from onebase.compare.statistics.paired_power import PairedSpread
from onebase.compare.statistics.sign_flips import SignFlipTest

METHODS = 5
PAIRS = list(combinations(range(METHODS), 2))
SHARED = 0.8
WITHIN = 0.3
Z = norm.ppf(0.975)
CHUNK = 25  # comparisons tested at once


def design(rows: int, clustered: bool, generator: np.random.Generator) -> list[int]:
    if not clustered:
        return list(range(rows))
    codes: list[int] = []
    while len(codes) < rows:
        size = min(int(generator.integers(1, 6)), rows - len(codes))
        codes += [codes[-1] + 1 if codes else 0] * size
    return codes


def latent(shape: tuple[int, ...], codes: list[int], generator: np.random.Generator) -> np.ndarray:
    at = np.array(codes)
    shared = generator.standard_normal((*shape, at.max() + 1))[..., at]
    own = generator.standard_normal((*shape, len(at)))
    return np.sqrt(WITHIN) * shared + np.sqrt(1 - WITHIN) * own


def outcomes(
    kind: str,
    sets: int,
    codes: list[int],
    gain: float | np.ndarray,
    generator: np.random.Generator,
    below: float = 0.0,
) -> np.ndarray:
    """[sets, methods, rows]; the first method is better by `gain`, of the mean loss or of the proportion of
    right rows, and the second one lies the share `below` of it under the others.
    """
    mixed = np.sqrt(SHARED) * latent((sets, 1), codes, generator)
    mixed = mixed + np.sqrt(1 - SHARED) * latent((sets, METHODS), codes, generator)
    gains = np.zeros((sets, METHODS, 1))
    gains[:, 0, 0] = gain * (1 - below)
    gains[:, 1, 0] = -gain * below
    if kind == "loss":
        return np.exp(0.5 * mixed) - gains
    return (mixed < norm.ppf(np.clip(0.8 + gains, 0, 1))) * 1.0


def corrected(values: np.ndarray, clusters: Clusters) -> np.ndarray:
    """Ours: the p-values of all pairs after Holm, [sets, pairs]."""
    one, other = np.array(PAIRS).T
    found = []
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        sums = clusters.sums(part[:, one] - part[:, other]).reshape(-1, len(clusters)).T
        p_values = SignFlipTest(sums, clusters).p_values().reshape(len(part), -1)
        found += [holm(row.tolist()) for row in p_values]
    return np.array(found)


def rules(values: np.ndarray, clusters: Clusters, lower: bool) -> dict[str, tuple[np.ndarray, ...]]:
    """By rule: which pairs differ [sets, pairs], and whether there is a winner [sets]."""
    rows = values.shape[-1]
    means = values.mean(axis=-1)
    errors = values.std(axis=-1, ddof=1) / np.sqrt(rows)
    one, other = np.array(PAIRS).T
    gap = abs(means[:, one] - means[:, other])
    unpaired = np.sqrt(errors[:, one] ** 2 + errors[:, other] ** 2)
    paired = (values[:, one] - values[:, other]).std(axis=-1, ddof=1) / np.sqrt(rows)
    uncorrected = np.array([holm(row.tolist()) for row in 2 * norm.sf(gap / unpaired.clip(1e-12))])
    differ = {
        "ours": corrected(values, clusters) < LEVEL,
        "unpaired, Holm": uncorrected < LEVEL,
        "intervals do not overlap": gap > Z * (errors[:, one] + errors[:, other]),
        "unpaired, uncorrected": gap > Z * unpaired,
        "paired, uncorrected": gap > Z * paired,
    }
    best = (means.argmin(axis=1) if lower else means.argmax(axis=1))[:, None]
    with_best = (np.array(PAIRS)[None] == best[..., None]).any(axis=-1)
    return {name: (found, (found | ~with_best).all(axis=1)) for name, found in differ.items()}


def equal_methods(sets: int) -> None:
    print(
        "| metric | n | clustered | rule | a winner | any pair differs |\n|---|---|---|---|---|---|"
    )
    for kind in ("right", "loss"):
        for rows in (12, 40, 140, 400):
            for clustered in (False, True):
                generator = np.random.default_rng([rows, clustered])
                codes = design(rows, clustered, generator)
                values = outcomes(kind, sets, codes, 0.0, generator)
                found = rules(values, Clusters(codes), kind == "loss")
                for name, (differ, winner) in found.items():
                    print(
                        f"| {kind} | {rows} | {'yes' if clustered else 'no'} | {name} "
                        f"| {winner.mean():.3f} | {differ.any(axis=1).mean():.3f} |",
                        flush=True,
                    )


def power(sets: int) -> None:
    print(
        "| metric | n | clustered | true difference | rule | the best is found better than the second | it wins |"
    )
    print("|---|---|---|---|---|---|---|")
    first = [pair == (0, 1) for pair in PAIRS].index(True)
    for kind, gain in (("right", 0.1), ("loss", 0.15)):
        for rows in (40, 140, 400):
            for clustered in (False, True):
                generator = np.random.default_rng([rows, clustered, 1])
                codes = design(rows, clustered, generator)
                values = outcomes(kind, sets, codes, gain, generator)
                found = rules(values, Clusters(codes), kind == "loss")
                means = values.mean(axis=-1)
                best = (means.argmin(axis=1) if kind == "loss" else means.argmax(axis=1)) == 0
                for name, (differ, winner) in found.items():
                    print(
                        f"| {kind} | {rows} | {'yes' if clustered else 'no'} | {gain} | {name} "
                        f"| {(differ[:, first] & best).mean():.3f} | {(winner & best).mean():.3f} |",
                        flush=True,
                    )


def detectable(sets: int) -> None:
    """The effect is estimated on one set of rows with equal methods and tried on others, where one of two methods
    lies half of the effect above .8 and the other one half of it below.
    """
    sets = sets // 4
    print(
        "| metric | n | clustered | pairs | stated effect (median) | found |\n|---|---|---|---|---|---|"
    )
    for kind in ("right", "loss"):
        for rows in (40, 60, 140, 400):
            for clustered in (False, True):
                generator = np.random.default_rng([rows, clustered, 2])
                codes = design(rows, clustered, generator)
                clusters = Clusters(codes)
                values = outcomes(kind, sets, codes, 0.0, generator)
                spreads = [
                    PairedSpread.of(part[0] - part[1], clusters, 1.0 if kind == "right" else None)
                    for part in values
                ]
                for pairs in (1, 10):
                    effects = np.array([s.smallest_effect(LEVEL / pairs) for s in spreads])
                    largest = 0.38 if kind == "right" else np.inf
                    possible = effects <= largest
                    if possible.mean() < 0.5:
                        print(
                            f"| {kind} | {rows} | {'yes' if clustered else 'no'} | {pairs} "
                            f"| {np.median(effects):.3f} | more than .8 leaves room for |",
                            flush=True,
                        )
                        continue
                    tried = []
                    for _ in range(4):
                        fresh = outcomes(
                            kind, int(possible.sum()), codes, effects[possible], generator, 0.5
                        )
                        sums = clusters.sums(fresh[:, 0] - fresh[:, 1]).T
                        p_values = [
                            SignFlipTest(sums[:, start : start + 200], clusters).p_values()
                            for start in range(0, sums.shape[1], 200)
                        ]
                        tried.append((pairs * np.concatenate(p_values) < LEVEL).mean())
                    print(
                        f"| {kind} | {rows} | {'yes' if clustered else 'no'} | {pairs} "
                        f"| {np.median(effects):.3f} | {np.mean(tried):.3f} |",
                        flush=True,
                    )


PARTS = {
    "equal": ("Five equal methods", equal_methods),
    "power": ("One method is better than the other four", power),
    "detectable": ("The minimum detectable effect, tried", detectable),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--only", choices=PARTS, action="append")
    arguments = parser.parse_args()
    for name in arguments.only or PARTS:
        title, simulate = PARTS[name]
        print(f"\n{title}\n")
        simulate(arguments.comparisons)


if __name__ == "__main__":
    main()
