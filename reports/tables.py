"""The tables of a run's scores: differences, breakdowns, diagnostics, failures, and how far two judges agree."""

import csv
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from harness.benchmark import Metric, Record
from harness.measure.agreement import Kind, Pair, agreement
from harness.measure.statistics import (
    SIGNIFICANT,
    Measurement,
    estimate_mean,
    holm,
    paired_differences,
    smallest_detectable,
)
from harness.run_folder import PlannedCell
from harness.run_folder.plan import BudgetName
from reports.run import Cell, Run

NAN = float("nan")
R = TypeVar("R", bound=tuple)
Records = Iterable[tuple[int, Record]]
"""Records, each with the seed it was measured under."""
_KINDS: Mapping[str, Kind] = {"ratings": "rating", "verdicts": "verdict"}
"""What a metric is made of -> the kind of agreement; anything else is a value of which nothing more is known."""


class Table(list[R]):
    """Rows of one kind. ``columns`` are those of their CSV file, ``cells`` makes a line of it from a row."""

    def __init__(self, columns: Sequence[str], rows: Iterable[R], cells: Callable[[R], Iterable[Any]] = tuple) -> None:
        super().__init__(rows)
        self.columns, self.cells = list(columns), cells

    def where(self, **equal: Any) -> list[R]:
        """The rows whose fields have the values given."""
        return [row for row in self if all(getattr(row, name) == value for name, value in equal.items())]

    def records(self) -> list[dict[str, Any]]:
        """The rows by column, as in the CSV file: rows for a data frame."""
        return [dict(zip(self.columns, self.cells(row), strict=True)) for row in self]

    def write(self, path: Path) -> None:
        """Write the CSV file ``path``, in which nan and None are empty."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(map(_text, self.cells(row)) for row in self)


def _text(value: Any) -> Any:
    """15 digits: every whole number (bytes, parameters) stays whole and no rounding noise shows."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.15g}"
    return value


class Score(NamedTuple):
    """The mean of a metric with its 95 % interval (nan where nothing was scored), scored and failed records."""

    mean: float
    low: float
    high: float
    n: int
    failed: int


class DifferenceRow(NamedTuple):
    """``variant`` minus ``against``; ``n`` pairs of the same item under the same seed.

    ``df`` are the degrees of freedom of the t distribution that p is from: nan with two seeds (see
    `harness.measure.spread`) and where nothing varies. ``detectable`` is the size of a difference that would probably
    have been significant (`smallest_detectable`).
    """

    variant: str
    against: str
    budget: BudgetName
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    n: int
    unpaired: int
    se: float
    df: float
    detectable: float

    @property
    def varies(self) -> bool:
        """Whether any item differs. Where none does, nothing is tested and nothing corrected for."""
        return not self.low == self.high == 0

    @property
    def tested(self) -> bool:
        return self.varies and self.p == self.p

    @property
    def significant(self) -> bool:
        """The one rule that better and worse are said by, wherever a report says so."""
        return self.tested and self.p_holm < SIGNIFICANT


class Group(NamedTuple):
    """The score of the records that have ``value`` under the table's key in their ``raw``."""

    variant: str
    budget: BudgetName
    metric: str
    value: Any
    score: Score


class Diagnostic(NamedTuple):
    """One figure that a method reports of itself, averaged over seeds; named ``benchmark.figure``."""

    variant: str
    budget: BudgetName
    diagnostic: str
    mean: float
    n_seeds: int


class Failure(NamedTuple):
    """One record that has no value. The second judge's benchmark is "<name>, second judge"."""

    cell: str
    benchmark: str
    metric: str
    item: str
    reason: str


class Agreed(NamedTuple):
    """One figure of `harness.measure.agreement`; a metric without a pair has one row, with n = 0 and no figure."""

    metric: str
    statistic: str | None
    value: float
    low: float
    high: float
    n: int
    failed_first: int
    failed_second: int


class SecondMean(NamedTuple):
    """The second judge's mean of one metric. Never mixed with the first one's."""

    judge: str
    variant: str
    budget: BudgetName
    metric: str
    score: Score


def differences(run: Run) -> Table[DifferenceRow]:
    """Every variant minus the baseline on the same items and seeds, per metric and budget.

    ``p_holm`` is corrected over all variants in one metric at one budget, but for those in which no item differs. A
    metric that has no pair is left out.
    """
    base, order = run.plan.baseline, list(run.plan.labels)
    wanted, rows = [(variant, base) for variant in order if variant != base], []
    for budget in run.plan.budgets:
        found = (row for metric in run.metrics for row in _compared(run, budget, metric, wanted))
        rows += sorted(found, key=lambda row: order.index(row.variant))
    return Table(DifferenceRow._fields, rows)


def pairs(run: Run) -> Table[DifferenceRow]:
    """Every variant minus every variant before it in the suite's order, as `differences`.

    ``p_holm`` is corrected over all pairs in one metric at one budget.
    """
    rows, wanted = [], [(b, a) for a, b in combinations(run.plan.labels, 2)]
    for budget, metric in product(run.plan.budgets, run.metrics):
        rows += _compared(run, budget, metric, wanted)
    return Table(DifferenceRow._fields, rows)


def _compared(run: Run, budget: BudgetName, metric: str, wanted: list[tuple[str, str]]) -> list[DifferenceRow]:
    """One family of comparisons, by the variants ``wanted``: p is corrected over those in which any item differs."""
    sides = {variant: _measurements(records(run.cells_of(variant, budget), metric)) for variant in run.plan.labels}
    found = paired_differences(sides, wanted, bounds=run.metrics[metric].scale)
    made = [
        DifferenceRow(
            one, other, budget, metric, d.mean, d.low, d.high, d.p, d.p, d.n, d.unpaired, d.spread.se, d.spread.df, NAN
        )
        for (one, other), d in found.items()
    ]
    corrected, tests = holm([row.p if row.tested else NAN for row in made]), sum(row.tested for row in made)
    return [
        row._replace(p_holm=p_holm, detectable=smallest_detectable(d, tests)) if row.tested else row
        for row, p_holm, d in zip(made, corrected, found.values(), strict=True)
    ]


def breakdown(run: Run, key: str) -> Table[Group]:
    """Scores per value of ``raw[key]`` for the records that carry it; the values are the column ``key``."""
    rows = []
    for variant, budget, cells in run.compared():
        found = [(seed, record) for seed, record in records(cells) if key in record.raw]
        scores = _scores(run, found, lambda record: (record.metric, record.raw[key]))
        rows += [Group(variant, budget, metric, value, score) for (metric, value), score in scores.items()]
    columns = ["variant", "budget", "metric", key, *Score._fields]
    return Table(columns, rows, lambda row: (*row[:-1], *row.score))


def diagnostics(run: Run) -> Table[Diagnostic]:
    """What the methods say about themselves, averaged over seeds."""
    rows = []
    for variant, budget, cells in run.fitted():
        figures = [cell.state.diagnostics for cell in cells]
        for name in dict.fromkeys(name for found in figures for name in found):
            values = [found[name] for found in figures if name in found]
            rows.append(Diagnostic(variant, budget, name, sum(values) / len(values), len(values)))
    return Table(Diagnostic._fields, rows)


def failures(run: Run) -> Table[Failure]:
    """Every failed record of every cell that is over, the second judge's too."""
    rows = []
    for cell in run.cells:
        again = {f"{name}, second judge": found for name, found in cell.second.items()}
        for name, found in (cell.records | again).items():
            failed = ((r, r.error) for r in found if r.error is not None)
            rows += [Failure(cell.planned.name, name, r.metric, r.item, reason) for r, reason in failed]
    return Table(Failure._fields, rows)


def agreements(run: Run) -> Table[Agreed]:
    """Every figure for each metric that both judges judged, over all done cells but sweeps.

    A model is a variant at a budget.
    """
    judged, rows = list(_judged_twice(run)), []
    for name in dict.fromkeys(a.metric for _, a, _ in judged):
        found = [(cell, a, b) for cell, a, b in judged if a.metric == name]
        failed = sum(a.value is None for _, a, _ in found), sum(b.value is None for _, _, b in found)
        pairs = [
            Pair(f"{cell.variant} at {cell.budget}", cell.seed, a.cluster, a.value, b.value)
            for cell, a, b in found
            if a.value is not None and b.value is not None
        ]
        if pairs:
            figures = agreement(pairs, _KINDS.get(run.metrics[name].made_of, "value"))
            rows += [Agreed(name, f.statistic, f.value, f.low, f.high, f.n, *failed) for f in figures]
        else:
            rows.append(Agreed(name, None, NAN, NAN, NAN, 0, *failed))
    return Table(Agreed._fields, rows)


def second_means(run: Run) -> Table[SecondMean]:
    """The second judge's means per variant, budget and metric."""
    rows = []
    judge = "" if run.environment.second_judge is None else run.environment.second_judge.label
    for variant, budget, cells in run.compared():
        found = [(cell.planned.seed, r) for cell in cells for again in cell.second.values() for r in again]
        scores = _scores(run, found, lambda record: record.metric)
        rows += [SecondMean(judge, variant, budget, metric, score) for metric, score in scores.items()]
    columns = [*SecondMean._fields[:-1], *Score._fields]
    return Table(columns, rows, lambda row: (*row[:-1], *row.score))


def mean_score(found: Records, metric: Metric) -> Score:
    """Mean and interval of the records, and how many were scored and failed."""
    found = list(found)
    scored = _measurements(found)
    if not scored:
        return Score(NAN, NAN, NAN, 0, len(found))
    e = estimate_mean(scored, bounds=metric.scale)
    return Score(e.mean, e.low, e.high, e.n, len(found) - len(scored))


def records(cells: Iterable[Cell], metric: str | None = None) -> list[tuple[int, Record]]:
    """The first judge's records, of one metric or of all."""
    return [
        (cell.planned.seed, record)
        for cell in cells
        for found in cell.records.values()
        for record in found
        if metric in (None, record.metric)
    ]


def _scores(run: Run, found: Records, key: Callable[[Record], Any]) -> dict[Any, Score]:
    """The score of the records of each ``key``, which has one metric."""
    groups: dict[Hashable, list[tuple[int, Record]]] = defaultdict(list)
    for seed, record in found:
        groups[key(record)].append((seed, record))
    return {value: mean_score(group, run.plan.metrics[group[0][1].metric]) for value, group in groups.items()}


def _measurements(found: Records) -> list[Measurement]:
    return [Measurement(seed, r.cluster, r.item, float(r.value)) for seed, r in found if r.value is not None]


def _judged_twice(run: Run) -> Iterator[tuple[PlannedCell, Record, Record]]:
    """The records of both judges about the same item, for every done cell of the comparison."""
    for cell in run.cells:
        if cell.done and not cell.planned.sweep:
            for name, again in cell.second.items():
                others = {(r.metric, r.item): r for r in again}
                mine = (r for r in cell.records.get(name, ()) if (r.metric, r.item) in others)
                yield from ((cell.planned, r, others[r.metric, r.item]) for r in mine)
