"""The first screen: what was compared, what came out in a sentence, and the leaderboard."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple
from urllib.parse import urlencode

from harness import markdown as md
from harness.benchmark import Metric
from harness.run_folder.plan import BudgetName, budget_text
from reports.comparison import Comparison, choice_metrics, headline_metrics
from reports.costs import flops_text
from reports.findings import Drop, Effect, Side, side_of
from reports.run import Run
from reports.tables import DifferenceRow, Group, Score, Table

Mark = Literal["", "better", "worse", "dropped"]
NAMED = 6
"""More variants than this in one part of the sentence are counted instead."""


class Column(NamedTuple):
    """``tip`` is what the heading means in full, ``lower`` whether less is better, ``cost`` that it is no score."""

    title: str
    unit: str
    tip: str
    lower: bool = False
    cost: bool = False


class Entry(NamedTuple):
    """One number: its ``text``, an interval below it, what it is sorted by, its mark and what the mark means.

    ``link`` opens the records behind it; None where there are none.
    """

    text: str
    interval: str = ""
    order: str = ""
    mark: Mark = ""
    why: str = ""
    link: str | None = None


class Row(NamedTuple):
    """One variant at one budget."""

    variant: str
    label: str
    remark: str
    budget: str
    entries: list[Entry]


class Leaderboard(NamedTuple):
    columns: list[Column]
    rows: list[Row]


def in_short(run: Run, effects: Iterable[Effect]) -> list[str]:
    """What came out, in one to three short sentences; none where nothing could be compared."""
    sides: dict[str, list[str]] = {}
    for effect in effects:
        sides.setdefault(effect.verdict, []).append(run.plan.labels[effect.variant])
    if not sides:
        return []
    said, baseline = [], run.plan.labels[run.plan.baseline]
    if gaining := sides.get("better"):
        verb = "are" if len(gaining) > 1 else "is"
        said.append(f"{_named(gaining)} {verb} better than {baseline} on some measure and worse on none.")
    elif "mixed" not in sides:
        said.append(f"No variant is better than {baseline} on any measure.")
    if mixed := sides.get("mixed"):
        said.append(f"Better on some, worse on others: {_named(mixed)}.")
    if losing := sides.get("worse"):
        said.append(f"Only worse: {_named(losing)}.")
    if unmoved := sides.get("nothing"):
        said.append(f"No detectable effect: {_named(unmoved)}.")
    return said


def _named(labels: list[str]) -> str:
    return md.words(labels) if len(labels) <= NAMED else f"{len(labels)} variants"


def leaderboard(
    run: Run, comparison: Table[Comparison], differences: Table[DifferenceRow], drops: Iterable[Drop]
) -> Leaderboard:
    """Variants x headline metrics, the mean of the multiple-choice tasks, and costs, at every budget."""
    metrics = [run.metrics[name] for name in headline_metrics(run)]
    choices = choice_metrics(run)
    tuned = any(row.cost.tuning_flops > 0 for row in comparison)
    compared = {(row.variant, row.budget, row.metric): row for row in differences}
    dropped = {(drop.variant, drop.budget, drop.metric) for drop in drops}
    columns = [Column(m.title, m.unit, _tip(m), lower=not m.higher_is_better) for m in metrics]
    if choices:
        tip = f"mean accuracy over {md.words([run.metrics[name].title for name in choices])}; a warning marks a task "
        columns.append(Column("multiple choice", "%", f"{tip}more than 2 points below the baseline's"))
    columns.append(Column("fit", "FLOPs", "FLOPs that the fit executed, mean over seeds", cost=True))
    if tuned:
        columns.append(Column("tuning", "FLOPs", "FLOPs of all trials before the fit, mean over seeds", cost=True))
    columns.append(Column("time", "s", f"seconds of the fit{', tuning included' * tuned}, mean over seeds", cost=True))
    rows = []
    for row in comparison:
        place = (row.variant, row.budget)
        entries = [_score(run, m, row, compared.get((*place, m.name))) for m in metrics]
        if choices:
            lost = [name for name in choices if (*place, name) in dropped]
            entries.append(_choices(run, choices, row, lost))
        cost = row.cost
        entries.append(_cost(cost.executed_flops, flops_text(cost)))
        if tuned:
            entries.append(_cost(cost.tuning_flops, md.flops(cost.tuning_flops)))
        seconds = cost.fit_seconds + (cost.tuning_seconds if tuned else 0)
        entries.append(_cost(seconds, md.number(seconds)))
        remark = "baseline" if row.variant == run.plan.baseline else "control" * (row.variant in run.controls)
        rows.append(Row(row.variant, run.plan.labels[row.variant], remark, budget_text(row.budget), entries))
    return Leaderboard(columns, rows)


class Breakdown(NamedTuple):
    """One metric by the values of a key: (label, an entry for each value or None) for each variant."""

    title: str
    values: list[str]
    rows: list[tuple[str, list[Entry | None]]]


def breakdowns(run: Run, groups: Table[Group], key: str) -> list[Breakdown]:
    """What `reports.tables.breakdown` found by ``key`` at the largest budget, each number with its records."""
    found, at = [], run.plan.budgets[-1]
    for name in dict.fromkeys(row.metric for row in groups):
        metric, mine = run.metrics[name], groups.where(metric=name, budget=at)
        values = list(dict.fromkeys(row.value for row in mine))
        scores = {(row.variant, row.value): row.score for row in mine}
        rows: list[tuple[str, list[Entry | None]]] = []
        for variant in dict.fromkeys(row.variant for row in mine):
            cells: list[Entry | None] = []
            for value in values:
                score = scores.get((variant, value))
                link = records_of(run, variant, at, name, **({"category": value} if key == "category" else {}))
                cells.append(score and _entry(score, metric, link))
            rows.append((run.plan.labels[variant], cells))
        found.append(Breakdown(metric.title, [str(value) for value in values], rows))
    return found


def records_of(run: Run, variant: str, budget: BudgetName, metric: str, **more: object) -> str:
    """The link that opens the viewer at the records of one number, beside the baseline's."""
    other = run.plan.baseline
    if variant == other:
        other = next((name for name in run.plan.labels if name != variant), variant)
    asked = {"metric": metric, "a": variant, "b": other, "budget": budget_text(budget), **more}
    return f"#answers?{urlencode(asked)}"


def _score(run: Run, metric: Metric, row: Comparison, compared: DifferenceRow | None) -> Entry:
    entry = _entry(row.scores[metric.name], metric, records_of(run, row.variant, row.budget, metric.name))
    side: Side = side_of(run, compared)
    if compared is None or side not in ("better", "worse"):
        return entry
    moved = f"{md.signed(compared.difference, metric.digits)} {md.interval(compared.low, compared.high, metric.digits)}"
    why = f"{side} than {run.plan.labels[run.plan.baseline]}: {moved}, corrected p {md.p_value(compared.p_holm)}"
    return entry._replace(mark=side, why=why)


def _entry(score: Score, metric: Metric, link: str) -> Entry:
    if not score.n:
        return Entry(f"{md.EMPTY} ({score.failed} failed)" if score.failed else md.EMPTY)
    interval = "" if math.isnan(score.low) else md.interval(score.low, score.high, metric.digits)
    text = md.number(score.mean, metric.digits) + (f" ({score.failed} failed)" if score.failed else "")
    return Entry(text, interval, _order(score.mean), link=link)


def _choices(run: Run, names: list[str], row: Comparison, lost: list[str]) -> Entry:
    """The mean over the tasks; without one when any task has no result."""
    means = [row.scores[name].mean for name in names]
    mean = sum(means) / len(means)
    if math.isnan(mean):
        return Entry(md.EMPTY)
    why = f"more than 2 points below the baseline: {md.words([run.metrics[name].title for name in lost])}" * bool(lost)
    link = records_of(run, row.variant, row.budget, (lost or names)[0])
    return Entry(md.number(mean, 1), "", _order(mean), "dropped" if lost else "", why, link)


def _cost(value: float, text: str) -> Entry:
    return Entry(text, order=_order(value), link="#cost")


def _order(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.15g}"


def _tip(metric: Metric) -> str:
    return f"{metric.title}, {metric.unit}; {'higher' if metric.higher_is_better else 'lower'} is better"
