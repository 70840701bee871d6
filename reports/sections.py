"""The report's tables as Markdown, made from typed rows."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any, TypeVar

from harness import markdown as md
from harness.benchmark import Metric
from harness.measure.agreement import STATISTICS
from harness.run_folder.plan import BudgetName, PlannedVariant, budget_order, budget_text, flops_of
from reports.answers import Answer, Prompt
from reports.comparison import Comparison, Drop, Sides, choice_metrics
from reports.costs import Compute, Judging, Operator, Stage
from reports.run import Run
from reports.tables import Agreed, Diagnostic, DifferenceRow, Failure, Group, Score, SecondMean, Table
from reports.tuning import Tuned

R = TypeVar("R")
Columns = Mapping[str, Callable[[R], str]]
"""Header -> the cell of a row, as Markdown."""
FAILURES_SHOWN = 40
SIGNIFICANT = 0.05
OPERATORS_SHOWN = 4
LEAST_SHARE = 1.0
"""Operators with less than this percentage of their stage's FLOPs are not shown one by one."""
EXCESS = 1.05
"""A trained method stops at the first step that reaches the bill; more than this factor is not one step too many."""
_ARROWS = {"better": " ↑", "worse": " ↓", "overlapping": "", "missing": ""}
_UNITLESS = ("pearson", "spearman", "kappa", "kendall")


def comparison_table(
    run: Run, table: Table[Comparison], sides: Sides, names: list[str], budget: BudgetName, drops: list[Drop]
) -> str:
    """Variants x metrics at one budget: ``mean [low, high] (n, failures)`` and the marks."""
    dropped = {(drop.variant, drop.metric) for drop in drops if drop.budget == budget}
    choices = choice_metrics(run)
    rows = []
    for row in table.where(budget=budget):
        cells = [_label(run, row.variant), str(row.n_seeds)]
        for name in names:
            mark = "" if name in choices else _ARROWS[sides[name, row.variant, budget]]
            mark += " ⚠" if (row.variant, name) in dropped else ""
            cells.append(_score(row.scores[name], run.metrics[name]) + mark)
        rows.append(cells)
    return md.table(["variant", "seeds", *(_title(run, name) for name in names)], rows)


def score_of(table: Table[Comparison], variant: str, metric: Metric, budget: BudgetName) -> str:
    """``mean [low, high]`` of one variant on one metric at ``budget``."""
    (row,) = table.where(variant=variant, budget=budget)
    return _score(row.scores[metric.name], metric, counts=False)


def difference_table(run: Run, differences: Table[DifferenceRow], name: str) -> str:
    """Variants x budgets for one metric: ``difference [low, high], p`` (Holm's), bold where p is below 0.05."""
    at = differences.where(metric=name)
    budgets = [budget for budget in run.plan.budgets if any(row.budget == budget for row in at)]
    cells = {(row.variant, row.budget): _difference(row, run.metrics[name].digits) for row in at}
    rows = [
        [_label(run, variant), *(cells.get((variant, budget), md.EMPTY) for budget in budgets)]
        for variant in dict.fromkeys(row.variant for row in at)
    ]
    return md.table(["variant", *map(budget_text, budgets)], rows)


def _difference(row: DifferenceRow, digits: int) -> str:
    """Pairs are counted only where some items had none."""
    difference = md.signed(row.difference, digits)
    difference = f"**{difference}**" if row.p_holm < SIGNIFICANT else difference
    pairs = f" ({row.n} pairs, {row.unpaired} unpaired)" if row.unpaired else ""
    return f"{difference} {md.interval(row.low, row.high, digits)}, p {md.p_value(row.p_holm)}{pairs}"


def breakdown_table(run: Run, breakdown: Table[Group], name: str) -> str:
    """Variants x values of the key for one metric at the largest budget: ``mean [low, high]``."""
    at = breakdown.where(metric=name, budget=run.plan.budgets[-1])
    values = list(dict.fromkeys(row.value for row in at))
    rows = []
    for variant in dict.fromkeys(row.variant for row in at):
        cells = {row.value: _score(row.score, run.metrics[name], counts=False) for row in at if row.variant == variant}
        rows.append([_label(run, variant), *(cells.get(value, md.EMPTY) for value in values)])
    return md.table(["variant", *map(md.escape, values)], rows)


def sweep_table(run: Run, sweeps: Table[Comparison]) -> str:
    """The rows of the largest budget (a run that grew has older ones too); empty when there are none."""
    table = [row for row in sweeps if row.budget in (0, run.plan.budgets[-1])]
    keys = [key for key in (table[0].sweep if table else ()) if any(row.sweep[key] is not None for row in table)]
    shown = {key: _swept_values(row.sweep[key] for row in sweeps) for key in keys}
    names = [name for name in run.metrics if any(row.scores[name].n for row in table)]
    rows = [
        [_label(run, row.variant), md.budget(row.budget)]
        + [shown[key](row.sweep[key]) for key in keys]
        + [_score(row.scores[name], run.metrics[name]) for name in names]
        for row in table
    ]
    headers = ["variant", "triples", *map(md.escape, keys), *(_title(run, name) for name in names)]
    return md.table(headers, rows) if table else ""


def drop_table(run: Run, drops: list[Drop]) -> str:
    columns: Columns[Drop] = {
        "variant": lambda drop: _label(run, drop.variant),
        "triples": lambda drop: md.budget(drop.budget),
        "task": lambda drop: md.escape(drop.metric),
        "accuracy": lambda drop: md.number(drop.value),
        "baseline": lambda drop: md.number(drop.baseline),
        "difference in points": lambda drop: f"{drop.value - drop.baseline:+.1f}",
    }
    return _table(drops, columns)


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
    return _table(run.plan.variants, columns, 3)


def failure_table(failures: Table[Failure]) -> str:
    columns: Columns[Failure] = {
        "cell": lambda row: f"`{row.cell}`",
        "metric": lambda row: md.escape(row.metric),
        "item": lambda row: md.escape(row.item),
        "reason": lambda row: md.escape(row.reason),
    }
    return _table(failures[:FAILURES_SHOWN], columns, 4)


def answer_table(prompt: Prompt) -> str:
    def text(answer: Answer) -> str:
        note = f"*({md.escape(answer.note)})*" if answer.note else ""
        return f"{'*(empty)*' if answer.text == '' else md.escape(answer.text or '')} {note}".strip()

    columns: Columns[Answer] = {
        "variant": lambda answer: md.escape(answer.label),
        "score": lambda answer: md.number(answer.value, prompt.metric.digits),
        "answer": text,
    }
    return _table(prompt.answers, columns, 3)


def diagnostic_table(run: Run, diagnostics: Table[Diagnostic]) -> str:
    """Each variant's figures per benchmark at its largest budget, with the methods' legend."""
    means: dict[tuple[str, str], dict[str, str]] = {}
    for row in _largest_budget(diagnostics):
        place, _, figure = row.diagnostic.rpartition(".")
        means.setdefault((row.variant, place), {})[figure] = f"{row.mean:.3g}"
    figures = list(dict.fromkeys(name for values in means.values() for name in values))
    rows = [
        [_label(run, variant), md.escape(place), *(values.get(name, md.EMPTY) for name in figures)]
        for (variant, place), values in means.items()
    ]
    table = md.table(["variant", "benchmark", *map(md.escape, figures)], rows, text_columns=2)
    return f"{table}\n\n{_legend(figures, run.plan.diagnostics)}"


def compute_table(run: Run, compute: Table[Compute]) -> str:
    """Variants x costs; accelerator memory has a column where there was one."""

    def trained(row: Compute) -> str:
        share = md.EMPTY if math.isnan(row.train_share) else f"{row.train_share:.3g} %"
        return f"{md.number(row.train_params, 0)} ({share})"

    columns: dict[str, Callable[[Compute], str]] = {
        "variant": lambda row: _label(run, row.variant),
        "triples": lambda row: md.budget(row.budget) if row.budget else "none",
        "executed FLOPs": lambda row: md.flops(row.executed_flops),
        "predicted FLOPs": _forecast,
        "formula FLOPs": lambda row: md.flops(row.formula_flops),
        "paper FLOPs": lambda row: md.flops(row.paper_flops),
        "seconds": lambda row: md.number(row.fit_seconds),
        "tuning FLOPs": lambda row: md.flops(row.tuning_flops) if row.tuning_flops else md.EMPTY,
        "tuning seconds": lambda row: md.number(row.tuning_seconds) if row.tuning_flops else md.EMPTY,
        "peak memory": lambda row: md.bytes_(row.peak_bytes),
        "peak GPU memory": lambda row: md.bytes_(row.cuda_peak_bytes),
        "tokens": lambda row: md.number(row.tokens, 0),
        "optimiser steps": lambda row: md.number(row.optimiser_steps, 0),
        "trained parameters": trained,
    }
    if all(math.isnan(row.cuda_peak_bytes) for row in compute):
        del columns["peak GPU memory"]
    if not any(row.tuning_flops for row in compute):
        del columns["tuning FLOPs"], columns["tuning seconds"]
    return _table(compute, columns)


def tuning_table(run: Run, tuned: Table[Tuned]) -> str:
    """Variants x how their tuning went; of seeds with the same winner all are named at once."""

    def won(row: Tuned) -> str:
        seeds: dict[str, list[str]] = {}
        for one in row.winners:
            values = ", ".join(f"{name} {_value(value)}" for name, value in one.params.items())
            note = " (own: none passed)" if one.fallback else " (own)" if one.trial == 1 else ""
            seeds.setdefault(values + note, []).append(str(one.seed))
        return md.escape("; ".join(f"seed {' and '.join(found)}: {text}" for text, found in seeds.items()))

    def failures(row: Tuned) -> str:
        failed = f", {row.failed} failed" if row.failed else ""
        return f"{row.below_floor} of {row.all_trials}{failed}"

    columns: Columns[Tuned] = {
        "variant": lambda row: _label(run, row.variant),
        "won": won,
        "triples": lambda row: md.budget(row.budget),
        "trials (fits)": lambda row: f"{md.number(row.trials, 0)} ({_value(row.fits)})",
        "base": lambda row: md.number(row.base_score, 3),
        "own values": lambda row: md.number(row.own_score, 3),
        "winner": lambda row: md.number(row.best_score, 3),
        "median trial": lambda row: md.number(row.median_score, 3),
        "near the best": lambda row: md.EMPTY if math.isnan(row.near) else f"{row.near:.0f} %",
        "below the floor": failures,
        "FLOPs": lambda row: md.flops(row.executed_flops),
        "seconds": lambda row: md.number(row.seconds),
    }
    return _table(tuned, columns, 2)


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value) if value is None else str(value)


def stop_table(run: Run, compute: Table[Compute]) -> str:
    """Where the fits stopped whose budget was a bill; empty where there is none."""
    limits = {row.budget: limit for row in compute if (limit := flops_of(row.budget)) is not None}

    def share(row: Compute) -> float:
        return row.executed_flops / limits[row.budget]

    def reason(row: Compute) -> str:
        if share(row) >= 1:
            return "bill reached" if share(row) <= EXCESS else "bill exceeded"
        return "no triples left" if row.triples >= run.environment.triples.n else "bill spent on triples"

    columns: Columns[Compute] = {
        "variant": lambda row: _label(run, row.variant),
        "bill": lambda row: md.flops(limits[row.budget]),
        "executed": lambda row: f"{md.number(100 * share(row))} %",
        "stopped because": reason,
        "triples": lambda row: md.number(row.triples * min(1.0, row.epochs), 0),
        "epochs": lambda row: md.number(row.epochs, 2),
        "optimiser steps": lambda row: md.number(row.optimiser_steps, 0),
    }
    return _table([row for row in compute if row.budget in limits], columns) if limits else ""


def ratio_table(run: Run, compute: Table[Compute]) -> str:
    """Costs of the variants that have a figure by the paper's convention, over those of the cheapest one by it.

    At each variant's largest budget; empty unless two such variants stand at the same one.
    """
    measured = [row for row in compute if flops_of(row.budget) is None]  # a bill makes costs alike
    priced = [row for row in _largest_budget(measured) if row.paper_flops > 0]
    if len({row.budget for row in priced}) != 1 or len({row.paper_flops for row in priced}) < 2:
        return ""
    least = min(priced, key=lambda row: row.paper_flops)
    columns: Columns[Compute] = {
        "variants": lambda row: f"{_label(run, row.variant)} : {_label(run, least.variant)}",
        "executed": lambda row: md.number(row.executed_flops / least.executed_flops),
        "formula": lambda row: md.number(row.formula_flops / least.formula_flops),
        "paper": lambda row: md.number(row.paper_flops / least.paper_flops, 4),
    }
    return _table([row for row in priced if row.paper_flops > least.paper_flops], columns)


def stage_table(run: Run, stages: Table[Stage]) -> str:
    columns: Columns[Stage] = {
        "variant": lambda row: _label(run, row.variant),
        "stage": lambda row: md.escape(row.stage),
        "executed FLOPs": lambda row: md.flops(row.executed_flops),
        "predicted FLOPs": lambda row: md.flops(row.predicted_flops),
        "formula FLOPs": lambda row: md.flops(row.formula_flops),
        "seconds": lambda row: md.number(row.seconds),
        "peak memory": lambda row: md.bytes_(row.peak_bytes),
        "tokens": lambda row: md.number(row.tokens, 0),
        "steps": lambda row: md.number(row.steps, 0),
        "profiled": lambda row: md.number(row.sampled_steps, 0),
        "missed by the profiler": lambda row: md.EMPTY if math.isnan(row.missed_share) else f"{row.missed_share:.1f} %",
    }
    return _table(_largest_budget(stages), columns, 2)


def operator_table(run: Run, operators: Table[Operator]) -> str:
    """The operators with most FLOPs of each variant, stage and kind of step, and what all others add up to."""
    kinds = {(row.variant, row.row.stage, row.row.step): [] for row in operators}
    for row in operators:
        kinds[row.variant, row.row.stage, row.row.step].append(row)
    lines = []
    for (variant, stage, step), rows in kinds.items():
        shown = [row for row in rows[:OPERATORS_SHOWN] if row.share >= LEAST_SHARE]
        others = rows[len(shown) :]
        begin = [_label(run, variant), md.escape(stage), f"{md.escape(step)} × {rows[0].row.steps:,}"]
        lines += [[*begin, f"`{row.row.operator}`", f"{row.row.calls:,}", *_sums([row])] for row in shown]
        if others:
            lines.append([*begin, f"{len(others)} others" if shown else f"all {len(others)}", md.EMPTY, *_sums(others)])
    headers = ["variant", "stage", "steps", "operator", "calls", "FLOPs", "share of the stage", "by the profiler"]
    return md.table([*headers, "seconds"], lines, text_columns=4)


def _sums(rows: list[Operator]) -> list[str]:
    """FLOPs, share of the stage, FLOPs by the profiler and seconds of all ``rows``."""
    share = sum(row.share for row in rows)
    return [
        md.flops(sum(row.row.flops for row in rows)),
        md.EMPTY if math.isnan(share) else f"{share:.1f} %",
        md.flops(sum(row.row.profiler_flops for row in rows)),
        md.number(sum(row.row.seconds for row in rows), 3),
    ]


def judging_table(judging: Table[Judging]) -> str:
    """Judges x what was asked, what was sent and what it cost."""

    def price(row: Judging) -> str:
        """The known cost, and what calls with an unknown bill may have added."""
        cost, possible = row.account.cost, row.account.possible
        if cost is None:
            return "no prices given"
        return f"{cost:.4f} to {cost + possible:.4f}" if possible else f"{cost:.4f}"

    columns: Columns[Judging] = {
        "judge": lambda row: md.escape(row.judge),
        "answered as": lambda row: md.escape(" ".join(sorted(row.account.models))) or md.EMPTY,
        "verdicts wanted": lambda row: md.number(row.account.requests, 0),
        "at hand": lambda row: md.number(row.account.reused, 0),
        "calls": lambda row: md.number(row.account.calls, 0),
        "answered": lambda row: md.number(row.account.answered, 0),
        "failed": lambda row: md.number(row.account.calls - row.account.answered, 0),
        "prompt tokens": lambda row: md.number(row.account.prompt_tokens, 0),
        "reply tokens": lambda row: md.number(row.account.completion_tokens, 0),
        "cost": price,
    }
    return _table(judging, columns, 2)


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
    return f"{_table(agreements, columns, 2)}\n\n{_legend([name for name in STATISTICS if name in shown], STATISTICS)}"


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


def _table(rows: Iterable[R], columns: Columns[R], text_columns: int = 1) -> str:
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return md.table(list(columns), cells, text_columns=text_columns)


def _legend(names: Iterable[str], legends: Mapping[str, str]) -> str:
    return "".join(f"* `{name}`: {legends[name]}\n" for name in names if name in legends)


def _largest_budget(rows: Iterable[Any]) -> list[Any]:
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


def _label(run: Run, variant: str) -> str:
    return md.escape(run.plan.labels[variant])


def _swept_values(values: Iterable[Any]) -> Callable[[Any], str]:
    """Writes the values of a column: numbers with a point where one of them has a fraction or is missing."""
    types = {type(value) for value in values}
    pointed = types <= {int, float, NoneType} and types != {int}
    return lambda value: md.EMPTY if value is None else md.escape(float(value) if pointed else value)


def _forecast(row: Compute) -> str:
    """Predicted FLOPs, and their error against the executed ones."""
    predicted, executed = row.predicted_flops, row.executed_flops
    error = f" ({100 * (predicted / executed - 1):+.1f} %)" if executed and not math.isnan(predicted) else ""
    return md.flops(predicted) + error
