"""Coverage of nominal 95 % intervals in a simulation with known truth.

    OMP_NUM_THREADS=1 python bench/intervals.py [--sets 4000]

Right-or-wrong rows: the coverage over p from .02 to .98, exact by enumeration for single rows, simulated for
clusters of 1 to 5 rows whose proportions are beta-distributed around p with intra-cluster correlations of .1, .3
and .6 (20 draws of cluster sizes). Beside ours: Wilson, Clopper-Pearson and the normal interval over rows, and the
normal interval with cluster-robust standard errors. Then scores in [0, 1], losses, and averages over three
seeds. Prints Markdown tables: the average over p, and the worst p.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy.stats import beta, binom, norm

from onebase.compare.statistics.blaker import blaker_interval
from onebase.compare.statistics.clusters import Clusters
from onebase.compare.statistics.intervals import mean_intervals

ROWS = (12, 40, 200, 1000)
CORRELATIONS = (0.1, 0.3, 0.6)
PROPORTIONS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
DESIGNS = 20
Z = norm.ppf(0.975)
Ends = tuple[np.ndarray, np.ndarray]


def wilson(wins: np.ndarray, rows: int) -> Ends:
    share, total = wins / rows, rows + Z**2
    half = Z * np.sqrt(rows * share * (1 - share) + Z**2 / 4) / total
    return (wins + Z**2 / 2) / total - half, (wins + Z**2 / 2) / total + half


def clopper_pearson(wins: np.ndarray, rows: int) -> Ends:
    low = np.where(wins > 0, beta.ppf(0.025, np.maximum(wins, 1), rows - wins + 1), 0)
    return low, np.where(wins < rows, beta.ppf(0.975, wins + 1, np.maximum(rows - wins, 1)), 1)


def normal(wins: np.ndarray, rows: int) -> Ends:
    share = wins / rows
    half = Z * np.sqrt(share * (1 - share) / rows)
    return share - half, share + half


PEERS: dict[str, Callable[[np.ndarray, int], Ends]] = {
    "Wilson": wilson,
    "Clopper-Pearson": clopper_pearson,
    "normal": normal,
}


def single_rows() -> None:
    print("| n | ours | Wilson | Clopper-Pearson | normal |\n|---|---|---|---|---|")
    for rows in ROWS:
        proportions = np.arange(0.02, 0.9801, 0.001)
        counts = np.arange(rows + 1)
        ours = np.array([blaker_interval(int(count), rows) for count in counts]).T
        ends = [ours, *(peer(counts, rows) for peer in PEERS.values())]
        mass = binom.pmf(counts, rows, proportions[:, None])
        cells = []
        for low, high in ends:
            inside = (low <= proportions[:, None]) & (proportions[:, None] <= high)
            coverage = (mass * inside).sum(axis=1)
            cells.append(cell(coverage, proportions))
        print(f"| {rows:,} | {' | '.join(cells)} |", flush=True)


def cell(coverage: np.ndarray, proportions: np.ndarray) -> str:
    worst = int(coverage.argmin())
    return f"{coverage.mean():.4f}, {coverage.min():.4f} (p = {proportions[worst]:.2g})"


def cluster_sizes(rows: int, generator: np.random.Generator) -> np.ndarray:
    sizes: list[int] = []
    while (left := rows - sum(sizes)) > 0:
        sizes.append(min(int(generator.integers(1, 6)), left))
    return np.array(sizes)


def clustered_rows(sets: int) -> None:
    print("| n | correlation | ours | Wilson | Clopper-Pearson | normal | normal, cluster-robust |")
    print("|---|---|---|---|---|---|---|")
    for rows in ROWS:
        means = []
        for correlation in CORRELATIONS:
            covered = np.zeros((len(PEERS) + 2, len(PROPORTIONS)))
            generator = np.random.default_rng([rows, round(10 * correlation)])
            for at, proportion in enumerate(PROPORTIONS):
                for _ in range(DESIGNS):
                    sizes = cluster_sizes(rows, generator)
                    codes = np.repeat(np.arange(len(sizes)), sizes)
                    scale = (1 - correlation) / correlation
                    levels = generator.beta(
                        proportion * scale,
                        (1 - proportion) * scale,
                        (sets // DESIGNS, len(sizes)),
                    )
                    values = (generator.random((len(levels), rows)) < levels[:, codes]) * 1.0
                    for row, (low, high) in enumerate(all_ends(values, Clusters(codes.tolist()))):
                        inside = (low <= proportion) & (proportion <= high)
                        covered[row, at] += inside.mean() / DESIGNS
            means.append(covered[0].mean())
            cells = [cell(coverage, np.array(PROPORTIONS)) for coverage in covered]
            print(f"| {rows:,} | {correlation} | {' | '.join(cells)} |", flush=True)
        print(f"| {rows:,} | all three | {np.mean(means):.4f} | | | | |", flush=True)


def all_ends(values: np.ndarray, clusters: Clusters) -> list[Ends]:
    wins = values.sum(axis=1)
    mean, low, high = mean_intervals(values, clusters, (0.0, 1.0))
    residuals = clusters.sums(values) - clusters.sizes * mean[:, None]
    correction = len(clusters) / (len(clusters) - 1)
    half = Z * np.sqrt(correction * (residuals**2).sum(axis=1)) / clusters.rows
    peers = [peer(wins, clusters.rows) for peer in PEERS.values()]
    return [(low, high), *peers, (mean - half, mean + half)]


def other_metrics(sets: int) -> None:
    """Scores and losses: a normal latent variable with a correlation of .3, transformed to the margin."""
    margins = {
        "score, Beta(2, 5)": (lambda u: beta.ppf(u, 2, 5), 2 / 7, (0.0, 1.0)),
        "score, Beta(.3, 2)": (lambda u: beta.ppf(u, 0.3, 2), 0.3 / 2.3, (0.0, 1.0)),
        "score, 60 % zeros": (
            lambda u: np.where(u < 0.6, 0, beta.ppf(np.maximum(u - 0.6, 0) / 0.4, 2, 2)),
            0.2,
            (0.0, 1.0),
        ),
        "loss, normal": (norm.ppf, 0.0, None),
        "loss, lognormal, sigma .5": (lambda u: np.exp(0.5 * norm.ppf(u)), np.exp(0.125), None),
        "loss, lognormal, sigma 1": (lambda u: np.exp(norm.ppf(u)), np.exp(0.5), None),
    }
    print("| n | clustered | metric | ours | normal, cluster-robust |\n|---|---|---|---|---|")
    for rows in ROWS:
        for clustered in (False, True):
            generator = np.random.default_rng([rows, clustered])
            tally: dict[str, list[tuple[float, float]]] = {}
            for _ in range(DESIGNS // 2):
                sizes = cluster_sizes(rows, generator) if clustered else np.ones(rows, dtype=int)
                codes = np.repeat(np.arange(len(sizes)), sizes)
                latent = correlated(sets // DESIGNS * 2, codes, generator)
                drawn = {
                    name: (margin(norm.cdf(latent)), truth, bounds)
                    for name, (margin, truth, bounds) in margins.items()
                }
                for proportion in (0.05, 0.3, 0.9):
                    seeds = [
                        0.6**0.5 * latent + 0.4**0.5 * generator.standard_normal(latent.shape)
                        for _ in range(3)
                    ]
                    right = np.mean([seed < norm.ppf(proportion) for seed in seeds], axis=0)
                    drawn[f"right, three seeds, p = {proportion}"] = right, proportion, (0.0, 1.0)
                for name, (values, truth, bounds) in drawn.items():
                    clusters = Clusters(codes.tolist())
                    mean, low, high = mean_intervals(values, clusters, bounds)
                    residuals = clusters.sums(values) - clusters.sizes * mean[:, None]
                    half = Z * np.sqrt((residuals**2).sum(axis=1)) / rows
                    ours = ((low <= truth) & (truth <= high)).mean()
                    tally.setdefault(name, []).append((ours, (abs(mean - truth) <= half).mean()))
            for name, parts in tally.items():
                ours, peer = np.mean(parts, axis=0)
                print(
                    f"| {rows:,} | {'yes' if clustered else 'no'} | {name} | {ours:.3f} | {peer:.3f} |"
                )


def correlated(sets: int, codes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    shared = generator.standard_normal((sets, codes.max() + 1))[:, codes]
    return np.sqrt(0.3) * shared + np.sqrt(0.7) * generator.standard_normal((sets, len(codes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=4000)
    arguments = parser.parse_args()
    print("Right or wrong, single rows\n")
    single_rows()
    print("\nRight or wrong, clustered\n")
    clustered_rows(arguments.sets)
    print("\nScores, losses, averages over seeds\n")
    other_metrics(arguments.sets)


if __name__ == "__main__":
    main()
