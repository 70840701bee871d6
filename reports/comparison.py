"""The comparison of the variants, and what it says, no more strongly than it does: who differs from the baseline."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from harness.benchmark import Metric
from harness.run_folder.plan import BudgetName
from reports.costs import Cost, mean_cost
from reports.run import Cell, Run
from reports.tables import Score, Table, mean_score, records

DROP_POINTS = 2.0
Side = Literal["better", "worse", "overlapping", "missing"]
Sides = dict[tuple[str, str, BudgetName], Side]
"""(metric, variant, budget) -> the side of the baseline that the variant's interval is on."""


class Comparison(NamedTuple):
    """One variant at one budget, or one swept point; ``scores`` are by metric, ``n_seeds`` the cells that are done."""

    variant: str
    method: str
    budget: BudgetName
    n_seeds: int
    scores: dict[str, Score]
    cost: Cost
    sweep: dict[str, Any]


class Finding(NamedTuple):
    """One metric at one budget: the other variants by the ``sides`` of the baseline that their intervals are on.

    ``measured`` is whether the baseline has a result, ``best`` the three best means among those that are better.
    """

    metric: Metric
    measured: bool
    sides: dict[Side, list[str]]
    best: list[str]


class Drop(NamedTuple):
    """A multiple-choice task on which ``variant`` is more than two points below the baseline."""

    variant: str
    budget: BudgetName
    metric: str
    value: float
    baseline: float


def comparison(run: Run) -> Table[Comparison]:
    """One row per variant and budget: who it is, ``n_seeds``, five columns per metric, the bill.

    ``<m>``, ``<m>_low``, ``<m>_high`` are mean and 95 % interval (empty where nothing was scored), ``<m>_n``
    the scored records over all seeds, ``<m>_failed`` those that failed. Only cells that are done count
    (``n_seeds`` of them). A variant without triples has its one result at every budget. The bill is the mean
    over seeds, peak memory the largest.
    """
    methods = {variant.name: variant.method for variant in run.plan.variants}
    return _table(run, [_row(run, name, methods[name], budget, cells) for name, budget, cells in run.compared()])


def sweeps(run: Run) -> Table[Comparison]:
    """The comparison's columns and the swept keys, one row per swept point."""
    keys = dict.fromkeys(key for cells in run.sweeps for key in cells[0].planned.sweep or {})
    rows = []
    for cells in run.sweeps:
        point, done = cells[0].planned, [cell for cell in cells if cell.done]
        swept = dict.fromkeys(keys) | (point.sweep or {})
        rows.append(_row(run, point.variant, point.method, point.budget, done, swept))
    return _table(run, rows, keys)


def headline_metrics(run: Run) -> list[str]:
    """All but multiple choice, which has `drops`."""
    return [metric.name for metric in run.metrics.values() if metric.made_of != "choices"]


def choice_metrics(run: Run) -> list[str]:
    return [metric.name for metric in run.metrics.values() if metric.made_of == "choices"]


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
    others = [variant for variant in run.plan.labels if variant != run.plan.baseline]
    found = []
    for name in headline_metrics(run):
        metric, means = run.metrics[name], {variant: row.scores[name].mean for variant, row in at.items()}
        on = {side: [v for v in others if sides[name, v, budget] == side] for side in get_args(Side)}
        best = sorted(on["better"], key=means.__getitem__, reverse=metric.higher_is_better)[:3]
        found.append(Finding(metric, not math.isnan(means[run.plan.baseline]), on, best))
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


def _row(
    run: Run, variant: str, method: str, budget: BudgetName, cells: Sequence[Cell], sweep: dict[str, Any] | None = None
) -> Comparison:
    scores = {metric: mean_score(records(cells, metric)) for metric in run.metrics}
    return Comparison(variant, method, budget, len(cells), scores, mean_cost(cells), sweep or {})


def _table(run: Run, rows: list[Comparison], swept: Iterable[str] = ()) -> Table[Comparison]:
    ends = ("", "_low", "_high", "_n", "_failed")  # of the columns of a `Score`
    scores = [metric + end for metric in run.metrics for end in ends]
    return Table([*Comparison._fields[:4], *scores, *Cost._fields, *swept], rows, _cells)


def _cells(row: Comparison) -> list[Any]:
    scores = [value for score in row.scores.values() for value in score]
    return [*row[:4], *scores, *row.cost, *row.sweep.values()]
