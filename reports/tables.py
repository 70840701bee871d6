"""The tables of a run's scores: comparison, sweeps, differences, breakdowns, diagnostics, failures."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.benchmark import Record
from harness.measure.statistics import Measurement, estimate_mean, holm, paired_difference
from harness.run_folder.plan import BudgetName
from reports.costs import Cost, mean_cost
from reports.rows import NAN, Row, Score, Table
from reports.run import Cell, Run

_PARTS = {"": "mean", "_low": "low", "_high": "high", "_n": "n", "_failed": "failed"}
"""What follows a metric's name in a column of the comparison -> the field of `Score` in it."""
_SCORE = [*_PARTS.values()]


@dataclass(frozen=True)
class Comparison(Row):
    """One variant at one budget, or one swept point; ``scores`` are by metric, ``n_seeds`` the cells that are done."""

    variant: str
    method: str
    budget: BudgetName
    n_seeds: int
    scores: dict[str, Score]
    cost: Cost
    sweep: dict[str, Any]

    def cells(self) -> dict[str, Any]:
        whose = {"variant": self.variant, "method": self.method, "budget": self.budget, "n_seeds": self.n_seeds}
        scores = {name + end: getattr(s, part) for name, s in self.scores.items() for end, part in _PARTS.items()}
        return whose | scores | self.cost.cells() | self.sweep


@dataclass(frozen=True)
class DifferenceRow(Row):
    """``variant`` minus the baseline; ``n`` pairs of the same item under the same seed."""

    variant: str
    budget: BudgetName
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int
    unpaired: int


@dataclass(frozen=True)
class Group(Row):
    """The score of the records that have ``value`` under ``key`` in their ``raw``."""

    variant: str
    budget: BudgetName
    metric: str
    key: str
    value: Any
    score: Score

    def cells(self) -> dict[str, Any]:
        whose = {"variant": self.variant, "budget": self.budget, "metric": self.metric, self.key: self.value}
        return whose | self.score.cells()


@dataclass(frozen=True)
class Diagnostic(Row):
    """One figure that a method reports of itself, averaged over seeds; named ``benchmark.figure``."""

    variant: str
    budget: BudgetName
    diagnostic: str
    mean: float
    n_seeds: int


@dataclass(frozen=True)
class Failure(Row):
    """One record that has no value. The second judge's benchmark is "<name>, second judge"."""

    cell: str
    benchmark: str
    metric: str
    item: str
    reason: str


def comparison(run: Run) -> Table[Comparison]:
    """One row per variant and budget: who it is, ``n_seeds``, five columns per metric, the bill.

    ``<m>``, ``<m>_low``, ``<m>_high`` are mean and 95 % interval (empty where nothing was scored), ``<m>_n``
    the scored records over all seeds, ``<m>_failed`` those that failed. Only cells that are done count
    (``n_seeds`` of them). A variant without triples has its one result at every budget. The bill is the mean
    over seeds, peak memory the largest.
    """
    rows = [
        _compared(run, variant.name, variant.method, budget, _done(run.cells_of(variant.name, budget)))
        for variant in run.plan.variants
        for budget in run.plan.budgets
    ]
    return Table(list(rows[0].cells()), rows)


def sweeps(run: Run) -> Table[Comparison]:
    """The comparison's columns and the swept keys, one row per swept point."""
    points = [(cells[0].planned, _done(cells)) for cells in run.sweeps]
    keys = dict.fromkeys(key for first, _ in points for key in first.sweep or {})
    rows = [
        _compared(
            run, first.variant, first.method, first.budget, done, {key: (first.sweep or {}).get(key) for key in keys}
        )
        for first, done in points
    ]
    empty = _compared(run, "", "", 0, [], dict.fromkeys(keys))
    return Table(list(empty.cells()), rows)


def differences(run: Run) -> Table[DifferenceRow]:
    """Every variant minus the baseline on the same items and seeds, per metric and budget.

    ``p_holm`` is corrected over all comparisons at one budget. A metric that has no pair is left out.
    """
    rows = []
    for budget in run.plan.budgets:
        base = _done(run.cells_of(run.plan.baseline, budget))
        family = []
        for variant in run.plan.labels:
            cells = _done(run.cells_of(variant, budget)) if variant != run.plan.baseline else []
            for metric in run.metrics:
                before, after = (_measurements(_records(side, metric)) for side in (base, cells))
                if {(m.seed, m.item) for m in before} & {(m.seed, m.item) for m in after}:
                    family.append((variant, metric, paired_difference(after, before)))
        corrected = holm([d.p for _, _, d in family])
        rows += [
            DifferenceRow(variant, budget, metric, d.mean, d.low, d.high, d.p, p_holm, d.n, d.unpaired)
            for (variant, metric, d), p_holm in zip(family, corrected, strict=True)
        ]
    return Table.of(DifferenceRow, rows)


def breakdown(run: Run, key: str) -> Table[Group]:
    """Scores per value of ``raw[key]`` for the records that carry it; the values are the column ``key``."""
    rows = []
    for variant in run.plan.labels:
        for budget in run.plan.budgets:
            groups: dict[tuple[str, Any], list[tuple[int, Record]]] = defaultdict(list)
            for seed, record in _records(_done(run.cells_of(variant, budget))):
                if key in record.raw:
                    groups[record.metric, record.raw[key]].append((seed, record))
            rows += [Group(variant, budget, metric, key, v, score(found)) for (metric, v), found in groups.items()]
    return Table(["variant", "budget", "metric", key, *_SCORE], rows)


def diagnostics(run: Run) -> Table[Diagnostic]:
    """What the methods say about themselves, averaged over seeds."""
    rows = []
    for variant in run.plan.labels:
        for budget, cells in run.groups(variant):
            figures = [cell.state.diagnostics for cell in cells]
            for name in dict.fromkeys(name for found in figures for name in found):
                values = [found[name] for found in figures if name in found]
                rows.append(Diagnostic(variant, budget, name, sum(values) / len(values), len(values)))
    return Table.of(Diagnostic, rows)


def failures(run: Run) -> Table[Failure]:
    """Every failed record of every cell that is over, the second judge's too."""
    rows = []
    for cell in run.cells:
        again = {f"{name}, second judge": found for name, found in cell.second.items()}
        for name, records in (cell.records | again).items():
            failed = ((r, r.error) for r in records if r.error is not None)
            rows += [Failure(cell.planned.name, name, r.metric, r.item, reason) for r, reason in failed]
    return Table.of(Failure, rows)


def score(found: Iterable[tuple[int, Record]]) -> Score:
    """Mean and interval of (seed, record)."""
    found = list(found)
    scored = _measurements(found)
    failed = len(found) - len(scored)
    if not scored:
        return Score(NAN, NAN, NAN, 0, failed)
    e = estimate_mean(scored)
    return Score(e.mean, e.low, e.high, e.n, failed)


def _compared(
    run: Run, variant: str, method: str, budget: BudgetName, cells: Sequence[Cell], sweep: dict[str, Any] | None = None
) -> Comparison:
    scores = {metric: score(_records(cells, metric)) for metric in run.metrics}
    return Comparison(variant, method, budget, len(cells), scores, mean_cost(cells), sweep or {})


def _measurements(found: Iterable[tuple[int, Record]]) -> list[Measurement]:
    return [Measurement(seed, r.cluster, r.item, float(r.value)) for seed, r in found if r.value is not None]


def _records(cells: Iterable[Cell], metric: str | None = None) -> list[tuple[int, Record]]:
    """(seed, record) of the first judge, of one metric or of all."""
    return [
        (cell.planned.seed, record)
        for cell in cells
        for records in cell.records.values()
        for record in records
        if metric in (None, record.metric)
    ]


def _done(cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.done]
