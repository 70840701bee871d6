"""Means with intervals over prompts and seeds together, paired differences, Holm's correction, what could be seen.

A measurement belongs to a seed (a repeat of fit and generation) and to a cluster (a prompt, with all its turns); both
were drawn from something larger, so both count as random (`harness.measure.spread`, which has the sources). It needs
no balance: measurements that failed are simply absent. ``docs/statistics.md`` has the formulas, and how often intervals
and tests are wrong in simulations (`harness.measure.simulation`).

For statistics that are no means (correlations, kappas) there is the pigeonhole bootstrap: A. B. Owen, "The pigeonhole
bootstrap", Annals of Applied Statistics 1, 2007. With k seeds it sees only (k - 1) / k of the variance between them, so
its intervals are too narrow where few seeds differ much.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from harness.measure.spread import Spread, spread_of

LEVEL = 0.95
SIGNIFICANT = 0.05
"""A difference is one when its p, corrected by Holm's method, is below this."""
POWER = 0.8
"""The probability with which a difference of the smallest detectable size is found."""
REPLICATES = 2_000
"""Of the bootstrap."""
UNBOUNDED = (-math.inf, math.inf)
K = TypeVar("K", bound=Hashable)


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

    ``low`` and ``high`` are nan when there is nothing to go by (one seed and one cluster). They equal ``mean`` when
    all values are equal: no variation was seen, which is not the same as none being possible.
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

    ``spread`` is what interval and p rest on, ``least_p`` the smallest p that so many prompts can give (nan where p
    is).
    """

    p: float
    unpaired: int
    least_p: float
    spread: Spread


def estimate_mean(measurements: Sequence[Measurement], *, bounds: tuple[float, float] = UNBOUNDED) -> Estimate:
    """Mean over all measurements, each counting once, with its interval.

    With one seed the interval covers the choice of prompts alone, with one cluster the choice of seeds alone. It is cut
    at ``bounds``, the ends of the values' scale, beyond which no mean can lie (not at one that a value lies beyond).
    The same input gives the same interval, in any order of the measurements. Raises ValueError on no measurements, a
    value that is not finite, or one item measured twice under one seed.
    """
    if not measurements:
        raise ValueError("no measurements: a mean of nothing is not a number; report it as missing")
    places, values = _aligned({0: measurements})
    return _estimated(values[0], *places, bounds)[0]


def paired_difference(treated: Sequence[Measurement], baseline: Sequence[Measurement]) -> Difference:
    """Mean of ``treated - baseline`` over the items both measured under the same seed, with its p-value.

    The p-value is that of the test whose interval is the difference's, and never below 2 ** (1 - m) for m clusters (or
    seeds, where there is a single cluster), the least a two-sided sign test on m units can give: a handful of prompts
    cannot be highly significant, however alike. Raises ValueError when nothing pairs, and as `estimate_mean` does.
    """
    found = paired_differences({"treated": treated, "baseline": baseline}, [("treated", "baseline")])
    if not found:
        raise ValueError("no item was measured on both sides under the same seed, so there is no paired difference")
    return found["treated", "baseline"]


def paired_differences(
    sides: Mapping[K, Sequence[Measurement]], pairs: Iterable[tuple[K, K]], *, bounds: tuple[float, float] = UNBOUNDED
) -> dict[tuple[K, K], Difference]:
    """`paired_difference` of each of many ``pairs`` of names of ``sides``, without those in which nothing pairs.

    Intervals are cut at the ends of what values within ``bounds`` can differ by.
    """
    (of_seed, of_cluster), values = _aligned(sides)
    rows, width = dict(zip(sides, values, strict=True)), bounds[1] - bounds[0]
    found = {}
    for pair in pairs:
        differences = rows[pair[0]] - rows[pair[1]]
        paired = ~np.isnan(differences)
        if not paired.any():
            continue
        estimate, spread = _estimated(differences[paired], of_seed[paired], of_cluster[paired], (-width, width))
        units = estimate.n_clusters if estimate.n_clusters > 1 else estimate.n_seeds
        least_p = 2.0 ** (1 - units) if units > 1 else math.nan
        p = max(spread.p_value(estimate.mean), least_p) if units > 1 else math.nan
        unpaired = sum(len(sides[name]) for name in pair) - 2 * estimate.n
        found[pair] = Difference(**vars(estimate), p=p, unpaired=unpaired, least_p=least_p, spread=spread)
    return found


def smallest_detectable(difference: Difference, comparisons: int) -> float:
    """The difference that a test like this one would have found with 80 % probability, in the unit of the values.

    It is (t(1 - 0.025 / m) + t(0.8)) standard errors, 2.8 for m = 1 and many degrees of freedom, where m is the number
    of ``comparisons`` that Holm's correction is over: the strictest of its steps, which a difference passes that is the
    only one. An approximation: it takes the standard error and its degrees of freedom for those of another run. nan
    where nothing varied (nobody knows what would have been seen) and where no difference, however large, could have
    been significant.
    """
    if not difference.spread.se > 0 or difference.least_p * comparisons >= SIGNIFICANT:
        return math.nan
    return difference.spread.half_width(SIGNIFICANT / comparisons) + difference.spread.half_width(2 * (1 - POWER))


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
    for _ in range(REPLICATES):
        w = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds)).astype(float)
        v = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters)).astype(float)
        weights = w[of_seed] * v[of_cluster]
        if weights.any():
            found.append(statistic(weights))
    defined = np.array([x for x in found if not np.isnan(x)])
    if not len(defined):
        return value, float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values of one family, in the order given; a nan stays nan and is no test.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    p = np.array(p_values, dtype=float)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]  # nan comes last
    p[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return p.tolist()


def _estimated(
    values: Float[np.ndarray, "value"],
    of_seed: Int[np.ndarray, "value"],
    of_cluster: Int[np.ndarray, "value"],
    bounds: tuple[float, float],
) -> tuple[Estimate, Spread]:
    """The mean of the values and its spread; not all numbers need occur in ``of_seed`` and ``of_cluster``."""
    (seeds, of_seed), (clusters, of_cluster) = (np.unique(x, return_inverse=True) for x in (of_seed, of_cluster))
    shape, cells = (len(seeds), len(clusters)), of_seed * len(clusters) + of_cluster
    first = float(values[0])
    if (values == first).all():  # exactly, without the rounding of sums
        same = math.nan if shape == (1, 1) else first
        return Estimate(first, same, same, len(values), *shape), Spread(((0.0, 1.0),) * (shape != (1, 1)))
    sums = np.bincount(cells, weights=values, minlength=shape[0] * shape[1]).reshape(shape)
    counts = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape).astype(float)
    mean, spread = float(sums.sum() / len(values)), spread_of(sums, counts)
    half = spread.half_width(1 - LEVEL)
    low = mean - half if values.min() < bounds[0] else max(mean - half, bounds[0])
    high = mean + half if values.max() > bounds[1] else min(mean + half, bounds[1])
    return Estimate(mean, low, high, len(values), *shape), spread


def _aligned(
    sides: Mapping[K, Sequence[Measurement]],
) -> tuple[tuple[Int[np.ndarray, "place"], Int[np.ndarray, "place"]], Float[np.ndarray, "side place"]]:
    """((seed, cluster) of every place, values of every side there), both in an order that is always the same.

    A place is an item under a seed; a side's value is nan where it has none.
    """
    for measurements in sides.values():
        _check(measurements)
    keys = {(m.seed, m.cluster, m.item): None for measurements in sides.values() for m in measurements}
    order = sorted(keys, key=lambda key: [(str(type(part)), str(part)) for part in key])
    place = {key: i for i, key in enumerate(order)}
    values = np.full((len(sides), len(order)), np.nan)
    for row, measurements in zip(values, sides.values(), strict=True):
        row[[place[m.seed, m.cluster, m.item] for m in measurements]] = [m.value for m in measurements]
    return (_numbered([key[0] for key in order])[0], _numbered([key[1] for key in order])[0]), values


def _numbered(keys: Sequence[Hashable]) -> tuple[Int[np.ndarray, "key"], int]:
    """The number of each key among the different ones, in an order that is always the same, and how many these are."""
    numbers = {key: i for i, key in enumerate(sorted(set(keys), key=lambda key: (str(type(key)), str(key))))}
    return np.array([numbers[key] for key in keys], dtype=int), len(numbers)


def _check(measurements: Sequence[Measurement]) -> None:
    seen = set()
    for m in measurements:
        if not math.isfinite(m.value):
            raise ValueError(f"item {m.item!r} (seed {m.seed!r}) has value {m.value}; leave failed items out")
        if (m.seed, m.item) in seen:
            raise ValueError(f"item {m.item!r} was measured twice under seed {m.seed!r}")
        seen.add((m.seed, m.item))
