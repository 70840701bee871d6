"""The end of a run on the terminal: quality and cost of every variant at the largest budget, in one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from harness import markdown as md
from harness.benchmark import Metric
from harness.plugins import Report
from harness.run_folder.plan import budget_text
from reports.comparison import Comparison, comparison, headline_metrics
from reports.render import write_report
from reports.run import Run, read_run

_ENDLESS = 10_000
"""Characters, more than any table has in a line."""


def report_at_the_end(folder: Path) -> Report:
    """Write the report of the run in ``folder``; its page, and the leaderboard to be shown on the terminal."""
    run = read_run(folder)
    return Report(write_report(run).with_name("report.html"), leaderboard(run))


@dataclass(frozen=True)
class Leaderboard:
    """The table with intervals where the terminal has room for them, else without."""

    full: Table
    short: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fits = console.measure(self.full, options=options.update(width=_ENDLESS)).maximum <= options.max_width
        yield self.full if fits else self.short


def leaderboard(run: Run) -> Leaderboard:
    """A row for each variant at the largest budget, the best by the first metric on top; the best values are bold.

    Means over prompts and seeds with 95 % intervals, then what fit and tuning executed (FLOPs) and the fit's seconds.
    """
    rows = comparison(run).where(budget=run.plan.budgets[-1])
    return Leaderboard(_table(run, rows, intervals=True), _table(run, rows, intervals=False))


def _table(run: Run, rows: Sequence[Comparison], *, intervals: bool) -> Table:
    budget, metrics = run.plan.budgets[-1], [run.metrics[name] for name in headline_metrics(run)]
    seeds = max((row.n_seeds for row in rows), default=0)
    title = f"{run.plan.name}, {budget_text(budget)}, {seeds} seed{'s' * (seeds != 1)}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant", max_width=34)
    for metric in metrics:
        table.add_column(f"{metric.title} ({metric.unit})", justify="right")
    for heading in ("FLOPs of fit / tuning", "fit seconds"):
        table.add_column(heading, justify="right")
    best = {metric.name: _best(rows, metric) for metric in metrics}
    for row in sorted(rows, key=lambda row: _rank(row, metrics)):
        scores = [_score(row, metric, best[metric.name], intervals=intervals) for metric in metrics]
        flops = f"{md.flops(row.cost.executed_flops)} / {md.flops(row.cost.tuning_flops)}"
        table.add_row(Text(run.plan.labels[row.variant]), *scores, flops, md.number(row.cost.fit_seconds, 1))
    return table


def _best(rows: Sequence[Comparison], metric: Metric) -> float | None:
    means = [row.scores[metric.name].mean for row in rows if row.scores[metric.name].n]
    return (max if metric.higher_is_better else min)(means, default=None)


def _rank(row: Comparison, metrics: Sequence[Metric]) -> float:
    """Where it stands by the first metric; behind all where that was not measured."""
    if not metrics or not (score := row.scores[metrics[0].name]).n:
        return float("inf")
    return -score.mean if metrics[0].higher_is_better else score.mean


def _score(row: Comparison, metric: Metric, best: float | None, *, intervals: bool) -> Text:
    score = row.scores[metric.name]
    if not score.n:
        return Text(md.EMPTY)
    interval = f" {md.interval(score.low, score.high, metric.digits)}" if intervals else ""
    failed = f" ({score.failed} failed)" if score.failed else ""
    text = f"{md.number(score.mean, metric.digits)}{interval}{failed}"
    return Text(text, style="bold" if score.mean == best else "")
