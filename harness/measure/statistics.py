"""Means with intervals over prompts and seeds together, paired differences, Holm's correction, what could be seen.

A measurement belongs to a seed (a repeat of fit and generation) and to a cluster (a prompt, with all its
turns); both were drawn from something larger, so both are resampled: the pigeonhole bootstrap (A. B. Owen,
"The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007). Each replicate draws seeds and clusters
with replacement, independently of each other, and weighs every measurement by the product of the two counts.
It needs no balance: measurements that failed are simply absent.

How far to trust it: it counts the noise that seed and prompt share up to three times (so intervals are a
little wide when that noise dominates) and, with k seeds, sees only (k - 1) / k of the variance between seeds.
With three seeds and seed differences that swamp those between prompts, a nominal 95 % interval covers about
75 %; with seed differences small against prompt differences it covers 93-97 % (tests/unit/test_statistics.py
measures both).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

REPLICATES = 10_000
LEVEL = 0.95
SIGNIFICANT = 0.05
"""A difference is one when its p, corrected by Holm's method, is below this."""
POWER = 0.8
"""The probability with which a difference of the smallest detectable size is found."""
_CHUNK_CELLS = 2_000_000  # bounds the memory of one chunk of replicates: replicates x clusters


@dataclass(frozen=True)
class Measurement:
    """One scored item: ``item`` is unique inside a seed, ``cluster`` the independent unit it belongs to."""

    seed: Hashable
    cluster: Hashable
    item: Hashable
    value: float


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` measurements and its 95 % interval, in the unit of the values.

    ``low`` and ``high`` are nan when there is nothing to resample (one seed and one cluster). They equal
    ``mean`` when all values are equal: no variation was seen, which is not the same as none being possible.
    """

    mean: float
    low: float
    high: float
    n: int
    n_seeds: int
    n_clusters: int


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean of ``n`` paired differences, its interval, a two-sided p-value (nan where the interval is
    nan), and how many measurements of either side had no partner on the other (``unpaired``).

    ``se`` is the standard error of the mean, over the same replicates as the interval, in the unit of the values;
    ``least_p`` the smallest p that so many prompts, seeds and replicates can give. Both are nan where p is.
    """

    p: float
    unpaired: int
    se: float
    least_p: float


def estimate_mean(
    measurements: Sequence[Measurement], *, level: float = LEVEL, replicates: int = REPLICATES
) -> Estimate:
    """Mean over all measurements, each counting once, with a pigeonhole-bootstrap percentile interval.

    With one seed the interval covers the choice of prompts alone, with one cluster the choice of seeds alone.
    The same input gives the same interval, in any order of the measurements. Raises ValueError on no
    measurements, a value that is not finite, or one item measured twice under one seed.
    """
    return _resampled(measurements, level, replicates)[0]


def paired_difference(
    treated: Sequence[Measurement], baseline: Sequence[Measurement], *, replicates: int = REPLICATES
) -> Difference:
    """Mean of ``treated - baseline`` over the items both measured under the same seed, with its p-value.

    The p-value is the bootstrap's own (twice the smaller share of replicates on either side of zero, with one
    added to both counts, so never 0), and never below 2 ** (1 - m) for m independent units, the least a
    two-sided sign test on m units can give: a handful of prompts cannot be highly significant. m counts
    clusters, or seeds where there is a single cluster. Raises ValueError when nothing pairs.
    """
    before = {(m.seed, m.cluster, m.item): m.value for m in baseline}
    pairs = [
        Measurement(m.seed, m.cluster, m.item, m.value - before[m.seed, m.cluster, m.item])
        for m in treated
        if (m.seed, m.cluster, m.item) in before
    ]
    if not pairs:
        raise ValueError("no item was measured on both sides under the same seed, so there is no paired difference")
    estimate, means = _resampled(pairs, LEVEL, replicates)
    units = estimate.n_clusters if estimate.n_clusters > 1 else estimate.n_seeds
    p = se = least_p = float("nan")
    if units > 1:
        tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
        least_p = max(2 / (1 + len(means)), 2.0 ** (1 - units))
        p, se = min(1.0, max(2 * (1 + tail) / (1 + len(means)), least_p)), float(means.std())
    unpaired = len(treated) + len(baseline) - 2 * len(pairs)
    return Difference(**vars(estimate), p=p, unpaired=unpaired, se=se, least_p=least_p)


def smallest_detectable(difference: Difference, comparisons: int) -> float:
    """The difference that a test like this one would have found with 80 % probability, in the unit of the values.

    It is (z(1 - 0.025 / m) + z(0.8)) standard errors, 2.8 for m = 1, where m is the number of ``comparisons`` that
    Holm's correction is over: the strictest of its steps, which a difference passes that is the only one. An
    approximation: it takes the mean for normal and the standard error for known. nan where nothing varied (nobody
    knows what would have been seen) and where no difference, however large, could have been significant.
    """
    from scipy.stats import norm

    if not difference.se > 0 or difference.least_p * comparisons >= SIGNIFICANT:
        return float("nan")
    return float(norm.ppf(1 - SIGNIFICANT / (2 * comparisons)) + norm.ppf(POWER)) * difference.se


def estimate_statistic(
    statistic: Callable[[Float[np.ndarray, "measurement"]], float],
    seeds: Sequence[Hashable],
    clusters: Sequence[Hashable],
) -> tuple[float, float, float]:
    """(value, low, high) of any ``statistic`` of measurements, by the pigeonhole bootstrap.

    ``seeds`` and ``clusters`` say where each measurement belongs. ``statistic`` gets the measurements' weights: ones
    for the value, the products of both draws for a replicate. A replicate for which it is nan (undefined, such as a
    correlation of constants) is left out; the interval is nan where none is left or there is nothing to resample.
    Raises ValueError for lists of different or no length.
    """
    if len(seeds) != len(clusters) or not seeds:
        raise ValueError(
            f"{len(seeds)} seeds and {len(clusters)} clusters: give one of each per measurement, at least one"
        )
    value = statistic(np.ones(len(seeds)))
    (of_seed, n_seeds), (of_cluster, n_clusters) = _numbered(seeds), _numbered(clusters)
    if n_seeds == n_clusters == 1 or np.isnan(value):
        return value, float("nan"), float("nan")
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2_000):  # fewer than of means: one statistic costs more
        w = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds)).astype(float)
        v = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters)).astype(float)
        weights = w[of_seed] * v[of_cluster]
        if weights.any():
            found.append(statistic(weights))
    defined = np.array([x for x in found if not np.isnan(x)])
    if not len(defined):
        return value, float("nan"), float("nan")
    return value, *_interval(defined, LEVEL)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values of one family, in the order given; a nan stays nan and is no test."""
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p_values, dtype=float)
    tested = ~np.isnan(p)
    if tested.any():
        p[tested] = multipletests(p[tested], method="holm")[1]
    return p.tolist()


def _resampled(
    measurements: Sequence[Measurement], level: float, replicates: int
) -> tuple[Estimate, Float[np.ndarray, "replicate"]]:
    """The estimate and the replicates' means; replicates that drew no measurement at all are left out."""
    _check(measurements)
    sums, counts = _by_seed_and_cluster(measurements)
    n, (n_seeds, n_clusters) = len(measurements), sums.shape
    mean = float(sums.sum() / n)
    first = measurements[0].value
    if n_seeds == n_clusters == 1:
        return Estimate(mean, float("nan"), float("nan"), n, n_seeds, n_clusters), np.full(0, mean)
    if all(m.value == first for m in measurements):
        return Estimate(first, first, first, n, n_seeds, n_clusters), np.full(replicates, first)
    means = _pigeonhole(sums, counts, replicates)
    return Estimate(mean, *_interval(means, level), n, n_seeds, n_clusters), means


def _interval(replicates: Float[np.ndarray, "replicate"], level: float) -> tuple[float, float]:
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _pigeonhole(
    sums: Float[np.ndarray, "seed cluster"], counts: Float[np.ndarray, "seed cluster"], replicates: int
) -> Float[np.ndarray, "replicate"]:
    """Means of the replicates: sums over sum of counts, both weighed by w_s v_c with w, v multinomial."""
    n_seeds, n_clusters = sums.shape
    # Clusters with the same sums and counts are interchangeable: drawing how often each *kind* comes up has
    # the same distribution and makes thousands of right-or-wrong items as cheap as a few.
    kinds, members = np.unique(np.concatenate([sums, counts]).T, axis=0, return_counts=True)
    kind_sums, kind_counts = kinds.T[:n_seeds], kinds.T[n_seeds:]
    chunk = max(1, _CHUNK_CELLS // len(kinds))
    rng = np.random.default_rng(0)
    means = []
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        w = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=size).astype(float)
        v = rng.multinomial(n_clusters, members / n_clusters, size=size).astype(float)
        total = ((w @ kind_counts) * v).sum(axis=1)
        drawn = total > 0
        means.append(((w @ kind_sums) * v).sum(axis=1)[drawn] / total[drawn])
    return np.concatenate(means)


def _by_seed_and_cluster(
    measurements: Sequence[Measurement],
) -> tuple[Float[np.ndarray, "seed cluster"], Float[np.ndarray, "seed cluster"]]:
    """Sum of the values and number of values of every (seed, cluster)."""
    of_seed, n_seeds = _numbered([m.seed for m in measurements])
    of_cluster, n_clusters = _numbered([m.cluster for m in measurements])
    values = np.array([m.value for m in measurements], dtype=float)
    # Sorted, so that neither the rounding of the sums nor the draws depend on the order of the input.
    order = np.lexsort((values, of_cluster, of_seed))
    cells, shape = (of_seed * n_clusters + of_cluster)[order], (n_seeds, n_clusters)
    sums = np.bincount(cells, weights=values[order], minlength=n_seeds * n_clusters)
    counts = np.bincount(cells, minlength=n_seeds * n_clusters).astype(float)
    return sums.reshape(shape), counts.reshape(shape)


def _numbered(keys: Sequence[Hashable]) -> tuple[Int[np.ndarray, "key"], int]:
    """The number of each key among the different ones, in an order that is always the same, and how many these are."""
    numbers = {key: i for i, key in enumerate(sorted(set(keys), key=lambda key: (str(type(key)), str(key))))}
    return np.array([numbers[key] for key in keys]), len(numbers)


def _check(measurements: Sequence[Measurement]) -> None:
    if not measurements:
        raise ValueError("no measurements: a mean of nothing is not a number; report it as missing")
    seen = set()
    for m in measurements:
        if not np.isfinite(m.value):
            raise ValueError(f"item {m.item!r} (seed {m.seed!r}) has value {m.value}; leave failed items out")
        if (m.seed, m.item) in seen:
            raise ValueError(f"item {m.item!r} was measured twice under seed {m.seed!r}")
        seen.add((m.seed, m.item))
