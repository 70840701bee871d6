"""How far the two judges of a run agree: the figures, the second judge's means, and both as Markdown."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness import markdown as md
from harness.benchmark import Metric, Record
from harness.measure.agreement import STATISTICS, Kind, Pair, agreement
from harness.run_folder.plan import BudgetName
from reports.rows import NAN, Row, Score, Table
from reports.run import Cell, Run
from reports.tables import Comparison, score

_UNITLESS = ("pearson", "spearman", "kappa", "kendall")
_KINDS: Mapping[str, Kind] = {"ratings": "rating", "verdicts": "verdict"}
"""What a metric is made of -> the kind of agreement; anything else is a value of which nothing more is known."""


@dataclass(frozen=True)
class Agreement(Row):
    """One figure of `harness.measure.agreement` for one metric; a metric without a pair has one row, with n = 0 and no
    figure."""

    metric: str
    statistic: str | None
    value: float
    low: float
    high: float
    n: int
    failed_first: int
    failed_second: int


@dataclass(frozen=True)
class SecondMean(Row):
    """The second judge's mean of one metric. Never mixed with the first one's."""

    judge: str
    variant: str
    budget: BudgetName
    metric: str
    score: Score

    def cells(self) -> dict[str, Any]:
        whose = {"judge": self.judge, "variant": self.variant, "budget": self.budget, "metric": self.metric}
        return whose | self.score.cells()


def agreement_table(run: Run) -> Table[Agreement]:
    """Every figure for each metric that both judges judged, over all done cells but sweeps.

    A model is a variant at a budget.
    """
    judged = [(cell, a, b) for cell in run.cells for a, b in _judged_twice(run, cell)]
    rows = []
    for name in dict.fromkeys(a.metric for _, a, _ in judged):
        found = [(cell.planned, a, b) for cell, a, b in judged if a.metric == name]
        failed = sum(a.value is None for _, a, _ in found), sum(b.value is None for _, _, b in found)
        pairs = [
            Pair(f"{cell.variant} at {cell.budget}", cell.seed, a.cluster, a.value, b.value)
            for cell, a, b in found
            if a.value is not None and b.value is not None
        ]
        if not pairs:
            rows.append(Agreement(name, None, NAN, NAN, NAN, 0, *failed))
            continue
        for f in agreement(pairs, _KINDS.get(run.metrics[name].made_of, "value")):
            rows.append(Agreement(name, f.statistic, f.value, f.low, f.high, f.n, *failed))
    return Table.of(Agreement, rows)


def second_means(run: Run) -> Table[SecondMean]:
    """The second judge's means per variant, budget and metric."""
    rows = []
    judge = "" if run.environment.second_judge is None else run.environment.second_judge.label
    for variant in run.plan.labels:
        for budget in run.plan.budgets:
            done = [cell for cell in run.cells_of(variant, budget) if cell.done]
            records = [
                (cell.planned.seed, record)
                for cell in done
                for name in run.plan.judged_twice
                for record in cell.second.get(name, ())
            ]
            for name in dict.fromkeys(record.metric for _, record in records):
                mean = score([(seed, record) for seed, record in records if record.metric == name])
                rows.append(SecondMean(judge, variant, budget, name, mean))
    return Table(["judge", "variant", "budget", "metric", "mean", "low", "high", "n", "failed"], rows)


def section(
    run: Run, comparison: Table[Comparison], figures: Table[Agreement], means: Table[SecondMean]
) -> dict[str, Any]:
    """``figures``: the table of figures and what each is. ``means``: (metric, table of each judge's means)."""
    metrics = [run.metrics[name] for name in dict.fromkeys(row.metric for row in figures)]
    tables = [(metric, _means(run, comparison, means, metric)) for metric in metrics]
    return {"figures": _figures(run, figures), "means": tables}


def _figures(run: Run, table: Table[Agreement]) -> str:
    """The figures as a table, and what each of them is."""
    rows = [
        [
            md.escape(run.metrics[row.metric].title),
            f"`{row.statistic}`" if row.n else md.EMPTY,
            _figure(row),
            str(row.n),
            f"{row.failed_first}, {row.failed_second}",
        ]
        for row in table
    ]
    shown = {row.statistic for row in table}
    legend = "".join(f"* `{name}`: {text}\n" for name, text in STATISTICS.items() if name in shown)
    headers = ["metric", "figure", "value", "n", "failed (first, second judge)"]
    return md.table(headers, rows, text_columns=2) + f"\n\n{legend}"


def _means(run: Run, comparison: Table[Comparison], means: Table[SecondMean], metric: Metric) -> str:
    """Each judge's means of one metric at the largest budget, a row a judge: no row mixes two."""
    budget = run.plan.budgets[-1]
    first = {row.variant: row.scores[metric.name] for row in comparison.where(budget=budget)}
    second = {row.variant: row.score for row in means.where(budget=budget, metric=metric.name)}
    judges = ((run.environment.judge, first), (run.environment.second_judge, second))
    rows = [
        [md.code(judge and judge.label), *(_mean(scores.get(variant), metric) for variant in run.plan.labels)]
        for judge, scores in judges
    ]
    return md.table(["judge", *map(md.escape, run.plan.labels.values())], rows)


def _judged_twice(run: Run, cell: Cell) -> Iterator[tuple[Record, Record]]:
    """The records of both judges about the same item, for a done cell of a row of the comparison."""
    if not cell.done or cell.planned.sweep:
        return
    for name in run.plan.judged_twice:
        others = {(record.metric, record.item): record for record in cell.second.get(name, ())}
        mine = cell.records.get(name, ())
        yield from ((r, others[r.metric, r.item]) for r in mine if (r.metric, r.item) in others)


def _figure(row: Agreement) -> str:
    if row.statistic is None or not row.n:
        return "no answer was judged by both"
    digits = 2 if row.statistic.startswith((*_UNITLESS, "mean")) else 1
    return f"{md.number(row.value, digits)} {md.interval(row.low, row.high, digits)}"


def _mean(score: Score | None, metric: Metric) -> str:
    """``mean [low, high]``."""
    if score is None or score.mean != score.mean:
        return md.EMPTY
    return f"{md.number(score.mean, metric.digits)} {md.interval(score.low, score.high, metric.digits)}"
