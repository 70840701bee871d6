"""What the numbers say, no more strongly than they do: who differs from the baseline, what got worse."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.names import BudgetName
from reports.metrics import Metric, metric
from reports.runfolder import LOG_LIKELIHOODS, MULTIPLE_CHOICE, Run
from reports.tables import rows_where

if TYPE_CHECKING:
    import pandas as pd

DROP_POINTS = 2.0
NAMED = 6
"""More variants than this on one side are counted, and named in the tables."""


@dataclass(frozen=True)
class Finding:
    """One metric at one budget: which intervals lie wholly on one side of the baseline's, and the rest."""

    metric: Metric
    baseline: str | None
    better: tuple[str, ...]
    worse: tuple[str, ...]
    overlapping: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Drop:
    """A multiple-choice task on which ``variant`` is more than two points below the baseline."""

    variant: str
    budget: BudgetName
    metric: str
    points: float
    value: float
    baseline: float


def findings(run: Run, comparison: "pd.DataFrame", budget: BudgetName) -> list[Finding]:
    """One finding per metric that is not multiple choice (those have `drops`), at ``budget``."""
    return [_finding(run, comparison, name, budget) for name in headline_metrics(run)]


def best(run: Run, comparison: "pd.DataFrame", finding: Finding, budget: BudgetName) -> list[str]:
    """The three variants with the best means among those that are better than the baseline."""
    means = {row["variant"]: row[finding.metric.name] for row in rows_where(comparison, budget=budget)}
    ranked = sorted(finding.better, key=lambda variant: means[variant], reverse=finding.metric.higher_is_better)
    return ranked[:3]


def headline_metrics(run: Run) -> list[str]:
    return [name for name, benchmark in run.metrics.items() if benchmark != MULTIPLE_CHOICE]


def multiple_choice_metrics(run: Run) -> list[str]:
    return [name for name, benchmark in run.metrics.items() if benchmark == MULTIPLE_CHOICE]


def unjudged_metrics(run: Run) -> list[str]:
    return [name for name, benchmark in run.metrics.items() if benchmark in LOG_LIKELIHOODS]


def side(run: Run, comparison: "pd.DataFrame", name: str, variant: str, budget: BudgetName) -> str:
    """The variant's interval against the baseline's: "better", "worse", "overlapping" or "missing"."""
    at = {row["variant"]: row for row in rows_where(comparison, budget=budget)}
    a, b = ((at[v][f"{name}_low"], at[v][f"{name}_high"]) for v in (variant, run.baseline))
    if any(math.isnan(value) for value in (*a, *b)):
        return "missing"
    if a[0] > b[1] or a[1] < b[0]:
        return "better" if metric(name).better(a[0], b[0]) else "worse"
    return "overlapping"


def drops(run: Run, comparison: "pd.DataFrame") -> list[Drop]:
    """Multiple-choice means more than two points below the baseline's at the same budget."""
    found = []
    for budget in run.budgets:
        at = {row["variant"]: row for row in rows_where(comparison, budget=budget)}
        for name in multiple_choice_metrics(run):
            base = at[run.baseline][name]
            for variant in run.variants:
                value = at[variant][name]
                if base - value > DROP_POINTS:
                    found.append(Drop(variant, budget, name, base - value, value, base))
    return found


def _finding(run: Run, comparison: "pd.DataFrame", name: str, budget: BudgetName) -> Finding:
    by_side: dict[str, list[str]] = {"better": [], "worse": [], "overlapping": [], "missing": []}
    for variant in run.variants:
        if variant != run.baseline:
            by_side[side(run, comparison, name, variant, budget)].append(variant)
    (row,) = rows_where(comparison, budget=budget, variant=run.baseline)
    sides = {key: tuple(variants) for key, variants in by_side.items()}
    return Finding(metric(name), None if math.isnan(row[name]) else run.baseline, **sides)
