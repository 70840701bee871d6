"""The report's tables of results as Markdown, made from typed rows; those of costs are in `cost_sections`."""

import json
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any, TypeVar

from harness import markdown as md
from harness.benchmark import Metric
from harness.measure.agreement import STATISTICS
from harness.run_folder.plan import BudgetName, PlannedVariant, budget_order, budget_text
from reports.answers import Answer, Prompt
from reports.comparison import Comparison, choice_metrics
from reports.costs import Cost, flops_text
from reports.findings import Drop, Effect, side_of
from reports.run import Run
from reports.tables import Agreed, Diagnostic, DifferenceRow, Failure, Group, Score, SecondMean, Table

R = TypeVar("R")
Columns = Mapping[str, Callable[[R], str]]
"""Header -> the cell of a row, as Markdown."""
FAILURES_SHOWN = 40
_ARROWS = {"better": " ↑", "worse": " ↓", "undecided": "", "untested": ""}
_UNITLESS = ("pearson", "spearman", "kappa", "kendall")


def comparison_table(
    run: Run,
    table: Table[Comparison],
    differences: Table[DifferenceRow],
    names: list[str],
    budget: BudgetName,
    drops: list[Drop],
) -> str:
    """Variants x metrics at one budget: ``mean [low, high] (n, failures)`` and the marks."""
    dropped = {(drop.variant, drop.metric) for drop in drops if drop.budget == budget}
    compared = {(row.variant, row.metric): row for row in differences.where(budget=budget)}
    rows = []
    for row in table.where(budget=budget):
        cells = [label_of(run, row.variant), str(row.n_seeds)]
        for name in names:
            mark = _ARROWS[side_of(run, compared.get((row.variant, name)))]
            mark += " ⚠" if (row.variant, name) in dropped else ""
            cells.append(_score(row.scores[name], run.metrics[name]) + mark)
        rows.append(cells)
    return md.table(["variant", "seeds", *(_title(run, name) for name in names)], rows)


def score_of(table: Table[Comparison], variant: str, metric: Metric, budget: BudgetName) -> str:
    """``mean [low, high]`` of one variant on one metric at ``budget``."""
    (row,) = table.where(variant=variant, budget=budget)
    return _score(row.scores[metric.name], metric, counts=False)


def moved_to(
    table: Table[Comparison], differences: Table[DifferenceRow], variant: str, metric: Metric, budget: BudgetName
) -> str:
    """``mean (difference [low, high])`` of a variant that differs from the baseline."""
    (row,) = table.where(variant=variant, budget=budget)
    (moved,) = differences.where(variant=variant, budget=budget, metric=metric.name)
    return f"{md.number(row.scores[metric.name].mean, metric.digits)} ({_moved(moved, metric.digits)})"


def effect_table(run: Run, effects: list[Effect]) -> str:
    """Variants x what got better, what got worse, multiple choice, and what fit and tuning cost."""

    def named(rows: list[DifferenceRow]) -> str:
        return ", ".join(f"{_title(run, row.metric)} {_moved(row, run.metrics[row.metric].digits)}" for row in rows)

    def better(effect: Effect) -> str:
        return named(effect.better) or ("no detectable effect" if effect.verdict == "nothing" else md.EMPTY)

    def capability(effect: Effect) -> str:
        found = [f"lost: {named(effect.lost)}"] * bool(effect.lost) + [f"gained: {named(effect.gained)}"] * bool(
            effect.gained
        )
        if found or not effect.kept:
            return "; ".join(found) or md.EMPTY
        lowest = min(effect.kept, key=lambda row: row.difference)
        return f"no loss detected (lowest: {named([lowest])})" if lowest.difference < 0 else "no loss detected"

    def price(flops: float, seconds: float) -> str:
        return f"{md.flops(flops)}, {md.number(seconds)} s" if flops else md.flops(flops)

    def fit(cost: Cost) -> str:
        return price(cost.executed_flops, cost.fit_seconds) if cost.flops_source == "measured" else flops_text(cost)

    columns: dict[str, Callable[[Effect], str]] = {
        "variant": lambda effect: label_of(run, effect.variant),
        "better": better,
        "worse": lambda effect: named(effect.worse) or md.EMPTY,
        "multiple choice": capability,
        "fit: FLOPs, seconds": lambda effect: fit(effect.cost),
        "tuning: FLOPs, seconds": lambda effect: price(effect.cost.tuning_flops, effect.cost.tuning_seconds),
    }
    if not choice_metrics(run):
        del columns["multiple choice"]
    if not any(effect.cost.tuning_flops for effect in effects):
        del columns["tuning: FLOPs, seconds"]
    return as_table(effects, columns, len(columns))


def what_would_have_been_seen(run: Run, effect: Effect, tests: int) -> str:
    """Sentences on a variant without any detectable effect: how large a one would probably have been detected.

    ``tests`` is the number of comparisons that p is corrected for.
    """
    seen = [
        f"{md.number(row.detectable, run.metrics[row.metric].digits)} ({_title(run, row.metric)})"
        for row in effect.unseen
        if row.detectable == row.detectable
    ]
    same = [_title(run, row.metric) for row in effect.unseen if not row.varies]
    few = [_title(run, row.metric) for row in effect.unseen if row.varies and row.detectable != row.detectable]
    said = []
    if seen:
        said.append(f"With these prompts and seeds a difference of about {md.words(seen)} would have been seen.")
    if same:
        said.append(f"Every item of {md.words(same)} has the baseline's value.")
    if few:
        said.append(f"In {md.words(few)} no difference could have been significant: too few prompts for {tests} tests.")
    return " ".join(said)


def _moved(row: DifferenceRow, digits: int) -> str:
    return f"{md.signed(row.difference, digits)} {md.interval(row.low, row.high, digits)}"


def difference_table(run: Run, differences: Table[DifferenceRow], name: str) -> str:
    """Variants x budgets for one metric: ``difference [low, high], p`` (Holm's), bold where p is below 0.05."""
    at = differences.where(metric=name)
    budgets = [budget for budget in run.plan.budgets if any(row.budget == budget for row in at)]
    cells = {(row.variant, row.budget): _difference(row, run.metrics[name].digits) for row in at}
    rows = [
        [label_of(run, variant), *(cells.get((variant, budget), md.EMPTY) for budget in budgets)]
        for variant in dict.fromkeys(row.variant for row in at)
    ]
    return md.table(["variant", *map(budget_text, budgets)], rows)


def _difference(row: DifferenceRow, digits: int) -> str:
    """Pairs are counted only where some items had none."""
    difference = md.signed(row.difference, digits)
    difference = f"**{difference}**" if row.significant else difference
    if not row.varies:
        return f"{difference}, no item differs"
    pairs = f" ({row.n} pairs, {row.unpaired} unpaired)" if row.unpaired else ""
    return f"{difference} {md.interval(row.low, row.high, digits)}, p {md.p_value(row.p_holm)}{pairs}"


def breakdown_table(run: Run, breakdown: Table[Group], name: str) -> str:
    """Variants x values of the key for one metric at the largest budget: ``mean [low, high]``."""
    at = breakdown.where(metric=name, budget=run.plan.budgets[-1])
    values = list(dict.fromkeys(row.value for row in at))
    rows = []
    for variant in dict.fromkeys(row.variant for row in at):
        cells = {row.value: _score(row.score, run.metrics[name], counts=False) for row in at if row.variant == variant}
        rows.append([label_of(run, variant), *(cells.get(value, md.EMPTY) for value in values)])
    return md.table(["variant", *map(md.escape, values)], rows)


def sweep_table(run: Run, sweeps: Table[Comparison]) -> str:
    """The rows of the largest budget (a run that grew has older ones too); empty when there are none."""
    table = [row for row in sweeps if row.budget in (0, run.plan.budgets[-1])]
    keys = [key for key in (table[0].sweep if table else ()) if any(row.sweep[key] is not None for row in table)]
    shown = {key: _swept_values(row.sweep[key] for row in sweeps) for key in keys}
    names = [name for name in run.metrics if any(row.scores[name].n for row in table)]
    rows = [
        [label_of(run, row.variant), md.budget(row.budget)]
        + [shown[key](row.sweep[key]) for key in keys]
        + [_score(row.scores[name], run.metrics[name]) for name in names]
        for row in table
    ]
    headers = ["variant", "triples", *map(md.escape, keys), *(_title(run, name) for name in names)]
    return md.table(headers, rows) if table else ""


def drop_table(run: Run, drops: list[Drop]) -> str:
    columns: Columns[Drop] = {
        "variant": lambda drop: label_of(run, drop.variant),
        "triples": lambda drop: md.budget(drop.budget),
        "task": lambda drop: md.escape(drop.metric),
        "accuracy": lambda drop: md.number(drop.value),
        "baseline": lambda drop: md.number(drop.baseline),
        "difference in points": lambda drop: f"{drop.value - drop.baseline:+.1f}",
    }
    return as_table(drops, columns)


def settings_table(run: Run) -> str:
    """What the suite sets for each variant; everything else is the method's default."""

    def settings(variant: PlannedVariant) -> str:
        found = [f"{name} = {json.dumps(value)}" for name, value in variant.settings.items()]
        space = {} if variant.tuning is None else variant.tuning.space
        found += [f"{name} tuned in {json.dumps(values)}" for name, values in space.items()]
        found += [f"preferences {variant.preferences}"] * (variant.preferences != "given")
        return ", ".join(found)

    columns: Columns[PlannedVariant] = {
        "variant": lambda variant: md.escape(variant.label),
        "method": lambda variant: f"`{variant.method}`",
        "set by the suite": lambda variant: md.escape(settings(variant)) or md.EMPTY,
    }
    return as_table(run.plan.variants, columns, 3)


def failure_table(failures: Table[Failure]) -> str:
    columns: Columns[Failure] = {
        "cell": lambda row: f"`{row.cell}`",
        "metric": lambda row: md.escape(row.metric),
        "item": lambda row: md.escape(row.item),
        "reason": lambda row: md.escape(row.reason),
    }
    return as_table(failures[:FAILURES_SHOWN], columns, 4)


def answer_table(prompt: Prompt) -> str:
    def text(answer: Answer) -> str:
        note = f"*({md.escape(answer.note)})*" if answer.note else ""
        return f"{'*(empty)*' if answer.text == '' else md.escape(answer.text or '')} {note}".strip()

    columns: Columns[Answer] = {
        "variant": lambda answer: md.escape(answer.label),
        "score": lambda answer: md.number(answer.value, prompt.metric.digits),
        "answer": text,
    }
    return as_table(prompt.answers, columns, 3)


def diagnostic_table(run: Run, diagnostics: Table[Diagnostic]) -> str:
    """Each variant's figures per benchmark at its largest budget, with the methods' legend."""
    means: dict[tuple[str, str], dict[str, str]] = {}
    for row in at_largest_budget(diagnostics):
        place, _, figure = row.diagnostic.rpartition(".")
        means.setdefault((row.variant, place), {})[figure] = f"{row.mean:.3g}"
    figures = list(dict.fromkeys(name for values in means.values() for name in values))
    rows = [
        [label_of(run, variant), md.escape(place), *(values.get(name, md.EMPTY) for name in figures)]
        for (variant, place), values in means.items()
    ]
    table = md.table(["variant", "benchmark", *map(md.escape, figures)], rows, text_columns=2)
    return f"{table}\n\n{_legend(figures, run.plan.diagnostics)}"


def agreement_table(run: Run, agreements: Table[Agreed]) -> str:
    """The figures as a table, and what each of them is."""

    def value(row: Agreed) -> str:
        if row.statistic is None or not row.n:
            return "no answer was judged by both"
        digits = 2 if row.statistic.startswith((*_UNITLESS, "mean")) else 1
        return f"{md.number(row.value, digits)} {md.interval(row.low, row.high, digits)}"

    columns: Columns[Agreed] = {
        "metric": lambda row: _title(run, row.metric),
        "figure": lambda row: f"`{row.statistic}`" if row.n else md.EMPTY,
        "value": value,
        "n": lambda row: str(row.n),
        "failed (first, second judge)": lambda row: f"{row.failed_first}, {row.failed_second}",
    }
    shown = {row.statistic for row in agreements}
    return (
        f"{as_table(agreements, columns, 2)}\n\n{_legend([name for name in STATISTICS if name in shown], STATISTICS)}"
    )


def judges_means(run: Run, comparison: Table[Comparison], means: Table[SecondMean], name: str) -> str:
    """Each judge's means of one metric at the largest budget, a row a judge: no row mixes two."""
    budget, metric = run.plan.budgets[-1], run.metrics[name]
    first = {row.variant: row.scores[name] for row in comparison.where(budget=budget)}
    second = {row.variant: row.score for row in means.where(budget=budget, metric=name)}
    judges = ((run.environment.judge, first), (run.environment.second_judge, second))
    rows = [
        [md.code(judge and judge.label)]
        + [_mean(scores[v], metric) if v in scores else md.EMPTY for v in run.plan.labels]
        for judge, scores in judges
    ]
    return md.table(["judge", *map(md.escape, run.plan.labels.values())], rows)


def as_table(rows: Iterable[R], columns: Columns[R], text_columns: int = 1) -> str:
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return md.table(list(columns), cells, text_columns=text_columns)


def _legend(names: Iterable[str], legends: Mapping[str, str]) -> str:
    return "".join(f"* `{name}`: {legends[name]}\n" for name in names if name in legends)


def at_largest_budget(rows: Iterable[Any]) -> list[Any]:
    """Of each variant the rows at its largest budget; rows have a ``variant`` and a ``budget``."""
    largest: dict[str, BudgetName] = {}
    for row in rows:
        largest[row.variant] = max(row.budget, largest.get(row.variant, row.budget), key=budget_order)
    return [row for row in rows if row.budget == largest[row.variant]]


def _mean(score: Score, metric: Metric) -> str:
    """``mean [low, high]``."""
    if not score.n:
        return md.EMPTY
    return f"{md.number(score.mean, metric.digits)} {md.interval(score.low, score.high, metric.digits)}"


def _score(score: Score, metric: Metric, *, counts: bool = True) -> str:
    """``mean [low, high] (n, failures)``; without ``counts`` these only where some failed."""
    tally = f" ({score.n}, {score.failed} failed)" if score.failed else f" ({score.n})" if counts else ""
    return _mean(score, metric) + tally


def _title(run: Run, name: str) -> str:
    return md.escape(run.metrics[name].title)


def label_of(run: Run, variant: str) -> str:
    return md.escape(run.plan.labels[variant])


def _swept_values(values: Iterable[Any]) -> Callable[[Any], str]:
    """Writes the values of a column: numbers with a point where one of them has a fraction or is missing."""
    types = {type(value) for value in values}
    pointed = types <= {int, float, NoneType} and types != {int}
    return lambda value: md.EMPTY if value is None else md.escape(float(value) if pointed else value)
