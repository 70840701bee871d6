"""How uncertain a mean over seeds and prompts is: the two-way random-effects model, balanced or not.

A value is ``mean + seed effect + prompt effect + noise``. With s seeds and c prompts, each measured under every seed,
the mean squares between seeds (MS_A), between prompts (MS_B) and of what is left (MS_E) estimate the variance of the
mean: (MS_A + MS_B - MS_E) / (s c), here never less than MS_A / (s c) or MS_B / (s c). Its degrees of freedom are those
of MS_A + MS_B by F. E. Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics
Bulletin 2, 1946.

Where measurements are missing, the three parts are sums over seeds, over prompts and over both (A. C. Cameron, J. B.
Gelbach, D. L. Miller, "Robust inference with multiway clustering", Journal of Business & Economic Statistics 29, 2011),
the first two made unbiased for uneven weights and given the degrees of freedom of R. M. Bell and D. F. McCaffrey, "Bias
reduction in standard errors for linear regression with multi-stage samples", Survey Methodology 28, 2002. Balanced,
that is the analysis of variance exactly.

Two seeds are too few for Satterthwaite: their difference is small by chance too often. There both factors keep their
own quantiles, and the half-width is the root of the sum of their squares: S. K. Banerjee, "Approximate confidence
interval for linear functions of means of k populations when the population variances are not equal", Sankhya 22, 1960,
which is cautious. ``docs/statistics.md`` says how often either covers.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

FEW = 1.5
"""Where a factor has fewer degrees of freedom than this (two levels have one), each keeps its own quantile."""


@dataclass(frozen=True)
class Spread:
    """The variance of a mean in independent ``parts``: (variance, degrees of freedom) each, variances in squared units.

    No part: nothing to go by (one seed and one prompt). Parts of variance 0: all values were equal.
    """

    parts: tuple[tuple[float, float], ...]

    @property
    def se(self) -> float:
        """Standard error; nan without a part."""
        return float(np.sqrt(sum(variance for variance, _ in self.parts))) if self.parts else float("nan")

    @property
    def df(self) -> float:
        """Degrees of freedom; nan where nothing varies, or no single t distribution stands behind the interval."""
        return self.parts[0][1] if len(self.parts) == 1 and self.se else float("nan")

    def half_width(self, alpha: float) -> float:
        """Of the interval that misses with probability ``alpha`` (0 < alpha < 1), in the unit of the mean; nan
        without a part."""
        if not self.parts:
            return float("nan")
        return float(np.sqrt(sum(variance * stdtrit(df, alpha / 2) ** 2 for variance, df in self.parts)))

    def p_value(self, mean: float) -> float:
        """The largest ``alpha`` whose interval around ``mean`` excludes 0; nan without a part, 1 for a mean of 0, 0
        for another where no part varies."""
        if not self.parts:
            return float("nan")
        if mean == 0 or self.se == 0:
            return float(mean == 0)
        if len(self.parts) == 1:
            return float(2 * stdtr(self.df, -abs(mean) / self.se))
        low, high = -300.0, 0.0  # of log alpha: the half-width falls as it rises
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.half_width(np.exp(middle)) > abs(mean) else (low, middle)
        return float(np.exp(high))


def spread_of(sums: Float[np.ndarray, "seed cluster"], counts: Float[np.ndarray, "seed cluster"]) -> Spread:
    """The spread of the mean of all measurements, each counting once.

    ``sums`` and ``counts`` are those of the values of every seed and cluster (a prompt with all its turns); a count of
    0 is a cell without a measurement. Every seed and every cluster has at least one. What lies inside one cell is not
    taken for independent. With one seed the spread is that of the choice of clusters, with one cluster that of seeds.
    """
    n_seeds, n_clusters = counts.shape
    total = counts.sum()
    deviations = (sums - counts * (sums.sum() / total)) / total
    factors = [
        _between(deviations.sum(axis=axis), counts.sum(axis=axis) / total)
        for axis, levels in ((1, n_seeds), (0, n_clusters))
        if levels > 1
    ]
    if len(factors) < 2:
        return Spread(tuple(factors))
    seeds, clusters = factors
    if min(seeds[1], clusters[1]) < FEW:
        rounding = 1e-20 * (seeds[0] + clusters[0])  # equal seeds vary by no more
        return Spread(tuple(part for part in (seeds, clusters) if part[0] > rounding) or (clusters,))
    # The noise, which both factors hold, is counted once, but neither factor for less than it is.
    variance = max(seeds[0] + clusters[0] - _noise(sums, counts), seeds[0], clusters[0])
    uncertainty = sum(v * v / df for v, df in (seeds, clusters))
    return Spread(((variance, variance**2 / uncertainty if uncertainty else min(seeds[1], clusters[1])),))


def _between(deviations: Float[np.ndarray, "level"], weights: Float[np.ndarray, "level"]) -> tuple[float, float]:
    """(variance, degrees of freedom) of a weighted mean of independent levels, from the levels' weighted deviations.

    Over levels of equal variance the sum of squares is a quadratic form in M = (I - 1w')' diag(w^2) (I - 1w'), so
    tr(M) makes it unbiased and tr(M)^2 / tr(M M) is its degrees of freedom: levels - 1 when the weights are equal.
    """
    w2, w3, w4, w5 = (float((weights**k).sum()) for k in (2, 3, 4, 5))
    trace = w2 - 2 * w3 + w2 * w2
    square = w4 + 2 * (w2 * w4 - 2 * w5) + 2 * (w2 * w4 + w3 * w3) + w2**4 - 4 * w2 * w2 * w3
    return float((deviations**2).sum()) * w2 / trace, trace * trace / square


def _noise(sums: Float[np.ndarray, "seed cluster"], counts: Float[np.ndarray, "seed cluster"]) -> float:
    """The part of the mean's variance that neither seed nor cluster explains; 0 where they explain everything."""
    here = counts > 0
    share = counts / counts.sum(axis=0)
    laplacian = np.diag(counts.sum(axis=1)) - counts @ share.T
    alpha, _, rank, _ = np.linalg.lstsq(laplacian, sums.sum(axis=1) - share @ sums.sum(axis=0), rcond=1e-9)
    beta = (sums.sum(axis=0) - alpha @ counts) / counts.sum(axis=0)
    left = (sums - counts * (alpha[:, None] + beta))[here] / counts.sum()
    cells, free = left.size, left.size - counts.shape[1] - int(rank)
    return float((left**2).sum()) * cells / free if free else 0.0
