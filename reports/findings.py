"""What a comparison found, no more strongly than it did: who differs from the baseline, and at what cost.

Better and worse are said by one rule: the paired difference to the baseline, significant after Holm's correction over
all variants in its metric at its budget (`reports.tables.differences`).
"""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from harness.benchmark import Metric
from harness.run_folder.plan import BudgetName
from reports.comparison import Comparison, choice_metrics, headline_metrics
from reports.costs import Cost
from reports.run import Run
from reports.tables import DifferenceRow, Table

DROP_POINTS = 2.0
Side = Literal["better", "worse", "undecided", "untested"]
Verdict = Literal["better", "mixed", "worse", "nothing"]


class Finding(NamedTuple):
    """One metric at one budget: the other variants by the ``sides`` of the baseline that they are on.

    ``measured`` is whether the baseline has a result, ``best`` the three best means among those that are better.
    """

    metric: Metric
    measured: bool
    sides: dict[Side, list[str]]
    best: list[str]


class Effect(NamedTuple):
    """What one variant changed at one budget, and what that cost.

    ``better``, ``worse`` and ``unseen`` are its differences in all metrics but multiple choice: significant ones to
    either side, and the others. ``gained``, ``lost`` and ``kept`` are the same of multiple choice.
    """

    variant: str
    better: list[DifferenceRow]
    worse: list[DifferenceRow]
    unseen: list[DifferenceRow]
    gained: list[DifferenceRow]
    lost: list[DifferenceRow]
    kept: list[DifferenceRow]
    cost: Cost

    @property
    def verdict(self) -> Verdict:
        """Better on something and worse on nothing, both, worse alone, or nothing seen; multiple choice counts."""
        if self.worse or self.lost:
            return "mixed" if self.better or self.gained else "worse"
        return "better" if self.better or self.gained else "nothing"


class Drop(NamedTuple):
    """A multiple-choice task on which ``variant`` is more than two points below the baseline."""

    variant: str
    budget: BudgetName
    metric: str
    value: float
    baseline: float


def side_of(run: Run, row: DifferenceRow | None) -> Side:
    """The side of the baseline that a variant is on; ``untested`` without pairs, or with a single one."""
    if row is None or math.isnan(row.p):
        return "untested"
    if not row.significant:
        return "undecided"
    return "better" if run.metrics[row.metric].better(row.difference, 0.0) else "worse"


def findings(
    run: Run, comparison: Iterable[Comparison], differences: Table[DifferenceRow], budget: BudgetName
) -> list[Finding]:
    """One finding per headline metric at ``budget``."""
    at = {row.variant: row for row in comparison if row.budget == budget}
    rows = {(row.metric, row.variant): row for row in differences.where(budget=budget)}
    others = [variant for variant in run.plan.labels if variant != run.plan.baseline]
    found = []
    for name in headline_metrics(run):
        metric, means = run.metrics[name], {variant: row.scores[name].mean for variant, row in at.items()}
        on = {side: [v for v in others if side_of(run, rows.get((name, v))) == side] for side in get_args(Side)}
        best = sorted(on["better"], key=means.__getitem__, reverse=metric.higher_is_better)[:3]
        found.append(Finding(metric, not math.isnan(means[run.plan.baseline]), on, best))
    return found


def effects(
    run: Run, comparison: Iterable[Comparison], differences: Table[DifferenceRow], budget: BudgetName
) -> list[Effect]:
    """One effect per variant that can be compared with the baseline at ``budget``, in the suite's order."""
    costs = {row.variant: row.cost for row in comparison if row.budget == budget}
    choices, found = choice_metrics(run), []
    for variant in run.plan.labels:
        rows = differences.where(variant=variant, budget=budget)
        parts = [[r for r in rows if r.metric not in choices], [r for r in rows if r.metric in choices]]
        sorted_out = [
            [row for row in part if side_of(run, row) in sides]
            for part in parts
            for sides in (("better",), ("worse",), ("undecided", "untested"))
        ]
        if rows:
            found.append(Effect(variant, *sorted_out, cost=costs[variant]))
    return found


def drops(run: Run, comparison: Iterable[Comparison]) -> list[Drop]:
    """Multiple-choice means more than two points below the baseline's at the same budget."""
    mean = {(row.variant, row.budget, name): score.mean for row in comparison for name, score in row.scores.items()}
    found = [
        Drop(variant, budget, name, mean[variant, budget, name], mean[run.plan.baseline, budget, name])
        for budget in run.plan.budgets
        for name in choice_metrics(run)
        for variant in run.plan.labels
    ]
    return [drop for drop in found if drop.baseline - drop.value > DROP_POINTS]
