"""The comparison of the variants: what each of them scored and cost at each budget."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from harness.run_folder.plan import BudgetName
from reports.costs import Cost, mean_cost
from reports.places import shown
from reports.run import Cell, Run
from reports.tables import Score, Table, mean_score, records


class Setting(NamedTuple):
    """One hyper-parameter that the suite sets for a variant: as JSON its value, and the space that it is tuned in.

    A variant for which nothing is set has one row without a setting. All else is the method's default.
    """

    variant: str
    label: str
    method: str
    preferences: str
    setting: str | None
    value: str | None
    tuned_in: str | None


class Comparison(NamedTuple):
    """One variant at one budget, or one swept point; ``scores`` are by metric, ``n_seeds`` the cells that are done."""

    variant: str
    method: str
    budget: BudgetName
    n_seeds: int
    scores: dict[str, Score]
    cost: Cost
    sweep: dict[str, Any]


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
        swept = dict.fromkeys(keys) | shown(point.sweep or {})
        rows.append(_row(run, point.variant, point.method, point.budget, done, swept))
    return _table(run, rows, keys)


def settings(run: Run) -> Table[Setting]:
    """What the suite sets for each variant."""
    rows = []
    for variant in run.plan.variants:
        space = {} if variant.tuning is None else variant.tuning.space
        for name in dict.fromkeys([*variant.settings, *space]) or (None,):
            value, tuned = (json.dumps(found[name]) if name in found else None for found in (variant.settings, space))
            rows.append(Setting(variant.name, variant.label, variant.method, variant.preferences, name, value, tuned))
    return Table(Setting._fields, rows)


def headline_metrics(run: Run) -> list[str]:
    """All but multiple choice, which is a measure of what was lost."""
    return [metric.name for metric in run.metrics.values() if metric.made_of != "choices"]


def choice_metrics(run: Run) -> list[str]:
    return [metric.name for metric in run.metrics.values() if metric.made_of == "choices"]


def constant_metrics(run: Run) -> dict[str, float]:
    """Metric -> its value, wherever every record of every variant has the same: there is nothing to compare."""
    values: dict[str, set[float | None]] = {}
    for cell in run.cells:
        for found in cell.records.values():
            for record in found:
                values.setdefault(record.metric, set()).add(record.value)
    single = {name: next(iter(values[name])) for name in run.metrics if len(values[name]) == 1}
    return {name: value for name, value in single.items() if value is not None}


def _row(
    run: Run, variant: str, method: str, budget: BudgetName, cells: Sequence[Cell], sweep: dict[str, Any] | None = None
) -> Comparison:
    scores = {name: mean_score(records(cells, name), metric) for name, metric in run.metrics.items()}
    return Comparison(variant, method, budget, len(cells), scores, mean_cost(cells), sweep or {})


def _table(run: Run, rows: list[Comparison], swept: Iterable[str] = ()) -> Table[Comparison]:
    ends = ("", "_low", "_high", "_n", "_failed")  # of the columns of a `Score`
    scores = [metric + end for metric in run.metrics for end in ends]
    return Table([*Comparison._fields[:4], *scores, *Cost._fields, *swept], rows, _cells)


def _cells(row: Comparison) -> list[Any]:
    scores = [value for score in row.scores.values() for value in score]
    return [*row[:4], *scores, *row.cost, *row.sweep.values()]
