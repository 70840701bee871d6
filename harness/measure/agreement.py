"""How far two judges of the same answers agree: correlations, equal verdicts, kappa, and the order of the models.

Every figure comes with a 95 % interval over prompts and seeds (`harness.measure.statistics.estimate_statistic`).
Spearman's ranks and the models' means are worked out anew in every replicate.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from harness.measure.statistics import estimate_statistic

MIDDLE_RATING = 5.5
"""Ratings from 1 to 10 above this are on the good side."""
EVEN = 50.0
"""Win rate of a tie, in percent: a verdict above it is a win, below it a loss."""

STATISTICS = {
    "pearson": "linear correlation of the two judges' values",
    "spearman": "correlation of their ranks, so only the order counts",
    "mean_abs_difference": "mean distance between the two values of an answer, in the metric's unit",
    "mean_difference": "second judge minus first, in the metric's unit",
    "same_side": f"% of answers that both rate above {MIDDLE_RATING} or both do not",
    "kappa_side": "Cohen's kappa of these two sides: 0 is what chance gives, 1 is full agreement",
    "equal": "% of answers with the same verdict: win, tie or loss",
    "kappa": "Cohen's kappa of the three verdicts",
    "equal_decided": "% of equal verdicts among the answers that neither judge calls a tie",
    "kappa_decided": "Cohen's kappa among these",
    "ties_first": "% of the first judge's verdicts that are ties",
    "ties_second": "% of the second judge's verdicts that are ties",
    "kendall": "Kendall's tau-b of the models' means: 1 if both judges put the models in the same order",
}
"""What each figure is, for whoever reads a table of them."""

Kind = Literal["rating", "verdict", "value"]
"""Ratings from 1 to 10; verdicts in percent (100 a win, 50 a tie, 0 a loss); numbers of which nothing more is known."""
Weights = Float[np.ndarray, "pair"]
Figures = dict[str, Callable[[Weights], float]]
"""{name: figure of the weights of the pairs}."""


@dataclass(frozen=True)
class Pair:
    """What two judges said of one answer; ``model`` gave it to a question (``cluster``) under a ``seed``."""

    model: str
    seed: Hashable
    cluster: Hashable
    first: float
    second: float


@dataclass(frozen=True)
class Agreement:
    """One figure over ``n`` pairs (``kendall``: ``n`` models) with its 95 % interval; nan where it is undefined."""

    statistic: str
    value: float
    low: float
    high: float
    n: int


def agreement(pairs: Sequence[Pair], kind: Kind) -> list[Agreement]:
    """The figures that fit ``kind``; `STATISTICS` says what each is.

    ``kendall`` is there when the answers come from at least two models. Raises ValueError when there are no pairs.
    """
    if not pairs:
        raise ValueError("no answer was judged by both judges, so there is no agreement to measure")
    a, b = _values(pairs)
    differences = {
        "mean_abs_difference": lambda w: float(np.average(abs(a - b), weights=w)),
        "mean_difference": lambda w: float(np.average(b - a, weights=w)),
    }
    if kind == "verdict":
        decided = [p for p in pairs if EVEN not in (p.first, p.second)]
        found = _estimates(pairs, _classified("equal", "kappa", _verdicts(a), _verdicts(b)))
        found += _estimates(decided, _classified("equal_decided", "kappa_decided", *map(_verdicts, _values(decided))))
        ties = {f"ties_{who}": partial(_percent, x == EVEN) for who, x in (("first", a), ("second", b))}
        found += _estimates(pairs, ties | differences)
    else:
        found = _estimates(pairs, _correlations(a, b) | differences)
    if kind == "rating":
        found += _estimates(pairs, _classified("same_side", "kappa_side", a > MIDDLE_RATING, b > MIDDLE_RATING))
    models = list(dict.fromkeys(p.model for p in pairs))
    if len(models) > 1:
        of_model = np.array([models.index(p.model) for p in pairs])
        order = _estimates(pairs, {"kendall": partial(_kendall_of_means, a, b, of_model, len(models))})
        found.append(replace(order[0], n=len(models)))
    return found


def _values(pairs: Sequence[Pair]) -> tuple[Weights, Weights]:
    """The first judge's and the second's."""
    return np.array([p.first for p in pairs], float), np.array([p.second for p in pairs], float)


def _correlations(a: Weights, b: Weights) -> Figures:
    return {"pearson": partial(pearson, a, b), "spearman": partial(spearman, a, b)}


def _classified(share: str, kappa: str, x: np.ndarray, y: np.ndarray) -> Figures:
    """The ``share`` of equal classes, in percent, and Cohen's ``kappa``."""
    return {share: partial(_percent, x == y), kappa: partial(cohen_kappa, x.astype(int), y.astype(int))}


def _percent(true: np.ndarray, w: Weights) -> float:
    return 100 * float(np.average(true, weights=w))


def _estimates(pairs: Sequence[Pair], figures: Figures) -> list[Agreement]:
    """Each figure with its interval; undefined (n = 0) where there are no pairs."""
    if not pairs:
        return [Agreement(name, math.nan, math.nan, math.nan, 0) for name in figures]
    seeds, clusters = [p.seed for p in pairs], [p.cluster for p in pairs]
    return [Agreement(name, *estimate_statistic(f, seeds, clusters), len(pairs)) for name, f in figures.items()]


def _verdicts(percent: Weights) -> Int[np.ndarray, "pair"]:
    """0 for a loss, 1 for a tie, 2 for a win."""
    return np.sign(percent - EVEN).astype(int) + 1


def pearson(a: Weights, b: Weights, w: Weights) -> float:
    """Weighted linear correlation; nan where one side is constant."""
    a, b = a - np.average(a, weights=w), b - np.average(b, weights=w)
    scale = np.sqrt((w * a * a).sum() * (w * b * b).sum())
    # Deviations of a constant are rounding noise, not a correlation.
    return float((w * a * b).sum() / scale) if scale > 1e-12 * w.sum() else float("nan")


def spearman(a: Weights, b: Weights, w: Weights) -> float:
    """Weighted correlation of ranks, equal values sharing the middle of theirs; nan where one side is constant."""
    ranks_a, ranks_b = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]
    return pearson(_midranks(ranks_a, w), _midranks(ranks_b, w), w)


def cohen_kappa(a: Int[np.ndarray, "pair"], b: Int[np.ndarray, "pair"], w: Weights) -> float:
    """Cohen's kappa of two classifications with weights; nan where chance alone gives full agreement."""
    n = int(max(a.max(), b.max())) + 1
    table = np.bincount(a * n + b, weights=w, minlength=n * n).reshape(n, n)
    total = float(table.sum())
    # Times total squared: with whole weights these are whole numbers, so full agreement is 1 exactly.
    seen, expected = total * float(np.trace(table)), float(table.sum(axis=1) @ table.sum(axis=0))
    return (seen - expected) / (total * total - expected) if total * total > expected else float("nan")


def kendall(a: Float[np.ndarray, "model"], b: Float[np.ndarray, "model"]) -> float:
    """Kendall's tau-b; nan where one side is all equal."""
    x, y = np.sign(np.subtract.outer(a, a)), np.sign(np.subtract.outer(b, b))
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale else float("nan")


def _midranks(ranks: Int[np.ndarray, "pair"], w: Weights) -> Weights:
    """Ranks of weighted values (up to a constant), equal values sharing the middle of theirs."""
    weight = np.bincount(ranks, weights=w)
    return (np.cumsum(weight) - weight / 2)[ranks]


def _kendall_of_means(a: Weights, b: Weights, model: Int[np.ndarray, "pair"], n_models: int, w: Weights) -> float:
    """tau-b of the models' weighted means, those left out that a replicate did not draw."""
    weight = np.bincount(model, weights=w, minlength=n_models)
    drawn = weight > 0
    means = [np.bincount(model, weights=w * x, minlength=n_models)[drawn] / weight[drawn] for x in (a, b)]
    return kendall(*means)
