"""What the numbers say, no more strongly than they do: who differs from the baseline, what got worse."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from harness.benchmark import Metric
from harness.run_folder.plan import BudgetName
from reports.run import Run
from reports.tables import Comparison

DROP_POINTS = 2.0
NAMED = 6
"""More variants than this on one side are counted, and named in the tables."""
Side = Literal["better", "worse", "overlapping", "missing"]


@dataclass(frozen=True)
class Finding:
    """One metric at one budget: which intervals lie wholly on one side of the baseline's, and the rest.

    ``best`` are the three with the best means among those that are better.
    """

    metric: Metric
    baseline: str | None
    better: tuple[str, ...]
    worse: tuple[str, ...]
    overlapping: tuple[str, ...]
    missing: tuple[str, ...]
    best: tuple[str, ...]


@dataclass(frozen=True)
class Drop:
    """A multiple-choice task on which ``variant`` is more than two points below the baseline."""

    variant: str
    budget: BudgetName
    metric: str
    points: float
    value: float
    baseline: float


Sides = dict[tuple[str, str, BudgetName], Side]
"""(metric, variant, budget) -> the side of the baseline that the variant's interval is on."""


def headline_metrics(run: Run) -> list[str]:
    """All but multiple choice, which has `drops`."""
    return [metric.name for metric in run.metrics.values() if metric.made_of != "choices"]


def choice_metrics(run: Run) -> list[str]:
    return [metric.name for metric in run.metrics.values() if metric.made_of == "choices"]


def unjudged_metrics(run: Run) -> list[str]:
    """The titles of the metrics made of log-likelihoods, behind which no judge stands."""
    return [metric.title for metric in run.metrics.values() if metric.made_of in ("choices", "loglikelihoods")]


def sides(run: Run, comparison: Iterable[Comparison]) -> Sides:
    """Each row's intervals against the baseline's at the same budget, for every metric."""
    at = {(row.variant, row.budget): row for row in comparison}
    found: Sides = {}
    for (variant, budget), row in at.items():
        for name, metric in run.metrics.items():
            a, b = row.scores[name], at[run.plan.baseline, budget].scores[name]
            if any(math.isnan(end) for end in (a.low, a.high, b.low, b.high)):
                side: Side = "missing"
            elif a.low > b.high or a.high < b.low:
                side = "better" if metric.better(a.low, b.low) else "worse"
            else:
                side = "overlapping"
            found[name, variant, budget] = side
    return found


def findings(run: Run, comparison: Iterable[Comparison], sides: Sides, budget: BudgetName) -> list[Finding]:
    """One finding per headline metric at ``budget``."""
    at = {row.variant: row for row in comparison if row.budget == budget}
    return [_finding(run, at, sides, run.metrics[name], budget) for name in headline_metrics(run)]


def drops(run: Run, comparison: Iterable[Comparison]) -> list[Drop]:
    """Multiple-choice means more than two points below the baseline's at the same budget."""
    at = {(row.variant, row.budget): row for row in comparison}
    found = []
    for budget in run.plan.budgets:
        for name in choice_metrics(run):
            base = at[run.plan.baseline, budget].scores[name].mean
            for variant in run.plan.labels:
                value = at[variant, budget].scores[name].mean
                if base - value > DROP_POINTS:
                    found.append(Drop(variant, budget, name, base - value, value, base))
    return found


def _finding(run: Run, at: dict[str, Comparison], sides: Sides, metric: Metric, budget: BudgetName) -> Finding:
    def on(side: Side) -> tuple[str, ...]:
        others = (variant for variant in run.plan.labels if variant != run.plan.baseline)
        return tuple(variant for variant in others if sides[metric.name, variant, budget] == side)

    def mean(variant: str) -> float:
        return at[variant].scores[metric.name].mean

    better = on("better")
    return Finding(
        metric=metric,
        baseline=None if math.isnan(mean(run.plan.baseline)) else run.plan.baseline,
        better=better,
        worse=on("worse"),
        overlapping=on("overlapping"),
        missing=on("missing"),
        best=tuple(sorted(better, key=mean, reverse=metric.higher_is_better)[:3]),
    )
