"""The report's tables as Markdown, made from typed rows."""

import json
import math
from typing import Any

from harness import markdown as md
from harness.benchmark import Metric
from harness.run_folder.plan import BudgetName, flops_of
from reports.answers import Prompt
from reports.costs import Compute, Judging, Operator, Stage
from reports.findings import Drop, Sides, choice_metrics
from reports.rows import Score, Table, largest_budget
from reports.run import Run
from reports.tables import Comparison, Diagnostic, DifferenceRow, Failure, Group

FAILURES_SHOWN = 40
OPERATORS_SHOWN = 5
EXCESS = 1.05
"""A trained method stops at the first step that reaches the bill; more than this factor is not one step too many."""
_ARROWS = {"better": " ↑", "worse": " ↓", "overlapping": "", "missing": ""}


def comparison_table(
    run: Run, table: Table[Comparison], sides: Sides, names: list[str], budget: BudgetName, drops: list[Drop]
) -> str:
    """Variants x metrics at one budget: ``mean [low, high] (n, failures)`` and the marks."""
    dropped = {(drop.variant, drop.metric) for drop in drops if drop.budget == budget}
    choices = choice_metrics(run)
    rows = []
    for row in table.where(budget=budget):
        cells = [md.escape(run.plan.labels[row.variant]), str(row.n_seeds)]
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


def difference_table(run: Run, differences: Table[DifferenceRow], budget: BudgetName) -> str:
    order = list(run.metrics)
    rows = []
    for row in sorted(differences.where(budget=budget), key=lambda row: order.index(row.metric)):
        digits = run.metrics[row.metric].digits
        unpaired = f", {row.unpaired} unpaired" if row.unpaired else ""
        rows.append(
            [
                _title(run, row.metric),
                md.escape(run.plan.labels[row.variant]),
                md.signed(row.difference, digits),
                md.interval(row.low, row.high, digits),
                md.p_value(row.p),
                md.p_value(row.p_holm),
                f"{row.n}{unpaired}",
            ]
        )
    headers = ["metric", "variant", "difference", "95 % interval", "p", "p (Holm)", "pairs"]
    return md.table(headers, rows, text_columns=2)


def breakdown_table(run: Run, breakdown: Table[Group], name: str) -> str:
    """Variants x values of the key for one metric at the largest budget: ``mean [low, high]``."""
    at = breakdown.where(metric=name, budget=run.plan.budgets[-1])
    values = list(dict.fromkeys(row.value for row in at))
    rows = []
    for variant in dict.fromkeys(row.variant for row in at):
        found = {row.value: row.score for row in at if row.variant == variant}
        cells = [_score(found[v], run.metrics[name], counts=False) if v in found else md.EMPTY for v in values]
        rows.append([md.escape(run.plan.labels[variant]), *cells])
    return md.table(["variant", *map(md.escape, values)], rows)


def sweep_table(run: Run, sweeps: Table[Comparison]) -> str:
    """The rows of the largest budget (a run that grew has older ones too); empty when there are none."""
    shown = [index for index, row in enumerate(sweeps) if row.budget in (0, run.plan.budgets[-1])]
    table = [sweeps.rows[index] for index in shown]
    keys = [key for key in (table[0].sweep if table else ()) if any(row.sweep[key] is not None for row in table)]
    columns = {key: _alike([row.sweep[key] for row in sweeps]) for key in keys}
    names = [name for name in run.metrics if any(row.scores[name].n for row in table)]
    rows = [
        [md.escape(run.plan.labels[row.variant]), md.budget(row.budget)]
        + [columns[key][index] for key in keys]
        + [_score(row.scores[name], run.metrics[name]) for name in names]
        for index, row in zip(shown, table, strict=True)
    ]
    headers = ["variant", "triples", *map(md.escape, keys), *(_title(run, name) for name in names)]
    return md.table(headers, rows) if table else ""


def drop_table(run: Run, drops: list[Drop]) -> str:
    rows = [
        [
            md.escape(run.plan.labels[drop.variant]),
            md.budget(drop.budget),
            md.escape(drop.metric),
            md.number(drop.value),
            md.number(drop.baseline),
            f"{-drop.points:+.1f}",
        ]
        for drop in drops
    ]
    return md.table(["variant", "triples", "task", "accuracy", "baseline", "difference in points"], rows)


def settings_table(run: Run) -> str:
    """What the suite sets for each variant; everything else is the method's default."""
    rows = []
    for variant in run.plan.variants:
        values = ", ".join(f"{name} = {json.dumps(value)}" for name, value in variant.settings.items())
        rows.append([md.escape(variant.label), f"`{variant.method}`", md.escape(values) or md.EMPTY])
    return md.table(["variant", "method", "set by the suite"], rows, text_columns=3)


def failure_table(failures: Table[Failure]) -> str:
    rows = [
        [f"`{row.cell}`", md.escape(row.metric), md.escape(row.item), md.escape(row.reason)]
        for row in failures.rows[:FAILURES_SHOWN]
    ]
    return md.table(["cell", "metric", "item", "reason"], rows, text_columns=4)


def answer_table(prompt: Prompt) -> str:
    rows = []
    for answer in prompt.answers:
        score = md.EMPTY if answer.value is None else md.number(answer.value, prompt.metric.digits)
        text = "*(empty)*" if answer.text == "" else md.escape(answer.text or "")
        note = f"*({md.escape(answer.note)})*" if answer.note else ""
        rows.append([md.escape(answer.label), score, f"{text} {note}".strip()])
    return md.table(["variant", "score", "answer"], rows, text_columns=3)


def diagnostic_table(run: Run, diagnostics: Table[Diagnostic]) -> str:
    """Each variant's figures per benchmark at its largest budget, with the methods' legend."""
    means: dict[tuple[str, str], dict[str, float]] = {}
    for row in largest_budget(diagnostics):
        place, _, figure = row.diagnostic.rpartition(".")
        means.setdefault((row.variant, place), {})[figure] = row.mean
    figures = list(dict.fromkeys(name for values in means.values() for name in values))
    lines = [
        [
            md.escape(run.plan.labels[variant]),
            md.escape(place),
            *(f"{values[name]:.3g}" if name in values else md.EMPTY for name in figures),
        ]
        for (variant, place), values in means.items()
    ]
    legends = run.plan.diagnostics
    legend = "".join(f"* `{name}`: {legends[name]}\n" for name in figures if name in legends)
    return md.table(["variant", "benchmark", *map(md.escape, figures)], lines, text_columns=2) + f"\n\n{legend}"


def compute_table(run: Run, compute: Table[Compute]) -> str:
    """Variants x costs; accelerator memory has a column where there was one."""
    gpu = any(not math.isnan(row.cuda_peak_bytes) for row in compute)
    rows = [
        [md.escape(run.plan.labels[row.variant]), md.budget(row.budget) if row.budget else "none"]
        + [md.flops(row.executed_flops), _forecast(row), md.flops(row.formula_flops), md.flops(row.paper_flops)]
        + [md.number(row.fit_seconds), md.bytes_(row.peak_bytes)]
        + ([md.bytes_(row.cuda_peak_bytes)] if gpu else [])
        + [md.number(row.tokens, 0), md.number(row.optimiser_steps, 0)]
        + [f"{md.number(row.train_params, 0)} ({_share(row.train_share)})"]
        for row in compute
    ]
    headers = ["variant", "triples", "executed FLOPs", "predicted FLOPs", "formula FLOPs", "paper FLOPs"]
    headers += ["seconds", "peak memory"]
    headers += ["peak GPU memory"] if gpu else []
    return md.table([*headers, "tokens", "optimiser steps", "trained parameters"], rows)


def stop_table(run: Run, compute: Table[Compute]) -> str:
    """Where the fits stopped whose budget was a bill; empty where there is none."""
    rows = []
    for row in compute:
        limit = flops_of(row.budget)
        if limit is None:
            continue
        share = row.executed_flops / limit
        if share >= 1:
            why = "bill reached" if share <= EXCESS else "bill exceeded"
        else:
            why = "no triples left" if row.triples >= run.environment.triples.n else "bill spent on triples"
        rows.append(
            [
                md.escape(run.plan.labels[row.variant]),
                md.flops(limit),
                f"{md.number(100 * share)} %",
                why,
                md.number(row.triples * min(1.0, row.epochs), 0),
                md.number(row.epochs, 2),
                md.number(row.optimiser_steps, 0),
            ]
        )
    headers = ["variant", "bill", "executed", "stopped because", "triples", "epochs", "optimiser steps"]
    return md.table(headers, rows) if rows else ""


def ratio_table(run: Run, compute: Table[Compute]) -> str:
    """Costs of the variants that have a figure by the paper's convention, over those of the cheapest one by it.

    At each variant's largest budget; empty unless two such variants stand at the same one.
    """
    measured = [row for row in compute if flops_of(row.budget) is None]  # a bill makes costs alike
    priced = [row for row in largest_budget(measured) if row.paper_flops > 0]
    if len({row.budget for row in priced}) != 1 or len({row.paper_flops for row in priced}) < 2:
        return ""
    least = min(priced, key=lambda row: row.paper_flops)
    rows = [
        [
            md.escape(f"{run.plan.labels[row.variant]} : {run.plan.labels[least.variant]}"),
            md.number(row.executed_flops / least.executed_flops),
            md.number(row.formula_flops / least.formula_flops),
            md.number(row.paper_flops / least.paper_flops, 4),
        ]
        for row in priced
        if row.paper_flops > least.paper_flops
    ]
    return md.table(["variants", "executed", "formula", "paper"], rows)


def stage_table(run: Run, stages: Table[Stage]) -> str:
    rows = [
        [
            md.escape(run.plan.labels[row.variant]),
            md.escape(row.stage),
            md.flops(row.executed_flops),
            md.flops(row.predicted_flops),
            md.flops(row.formula_flops),
            md.number(row.seconds),
            md.bytes_(row.peak_bytes),
            md.number(row.tokens, 0),
            md.number(row.steps, 0),
            md.number(row.sampled_steps, 0),
        ]
        for row in largest_budget(stages)
    ]
    headers = ["variant", "stage", "executed FLOPs", "predicted FLOPs", "formula FLOPs", "seconds", "peak memory"]
    return md.table([*headers, "tokens", "steps", "profiled"], rows, text_columns=2)


def operator_table(run: Run, operators: Table[Operator]) -> str:
    """The operators with most FLOPs of each variant, with their share of the variant's sample."""
    rows = []
    for variant in dict.fromkeys(row.variant for row in operators):
        sample = operators.where(variant=variant)
        total = sum(row.flops for row in sample)
        for row in sample[:OPERATORS_SHOWN]:
            share = 100 * row.flops / total if total else math.nan
            rows.append(
                [
                    md.escape(run.plan.labels[variant]),
                    md.escape(row.stage),
                    f"`{row.operator}`",
                    md.number(row.calls, 0),
                    md.flops(row.flops),
                    f"{md.number(share)} %",
                    md.number(row.seconds, 3),
                ]
            )
    headers = ["variant", "stage", "operator", "calls", "FLOPs", "share of the sample", "seconds"]
    return md.table(headers, rows, text_columns=3)


def judging_table(judging: Table[Judging]) -> str:
    """Judges x what was asked, what was sent and what it cost."""
    rows = [
        [
            md.escape(row.judge),
            md.escape(row.models) or md.EMPTY,
            *(md.number(count, 0) for count in (row.requests, row.reused, row.calls, row.answered)),
            md.number(row.calls - row.answered, 0),
            *(md.number(count, 0) for count in (row.prompt_tokens, row.completion_tokens)),
            _price(row.cost, row.possible),
        ]
        for row in judging
    ]
    headers = ["judge", "answered as", "verdicts wanted", "at hand", "calls", "answered", "failed", "prompt tokens"]
    return md.table([*headers, "reply tokens", "cost"], rows, text_columns=2)


def _score(score: Score, metric: Metric, *, counts: bool = True) -> str:
    """``mean [low, high] (n, failures)``; without ``counts`` these only where some failed."""
    tally = f" ({score.n}, {score.failed} failed)" if score.failed else f" ({score.n})" if counts else ""
    if not score.n:
        return f"{md.EMPTY}{tally}"
    return f"{md.number(score.mean, metric.digits)} {md.interval(score.low, score.high, metric.digits)}{tally}"


def _title(run: Run, name: str) -> str:
    return md.escape(run.metrics[name].title)


def _alike(values: list[Any]) -> list[str]:
    """A column of swept values: numbers with a point where one of them has a fraction or is missing."""
    numbers = all(value is None or type(value) in (int, float) for value in values)
    if numbers and not all(type(value) is int for value in values):
        values = [value if value is None else float(value) for value in values]
    return [md.EMPTY if value is None else md.escape(value) for value in values]


def _forecast(row: Compute) -> str:
    """Predicted FLOPs, and their error against the executed ones."""
    predicted, executed = row.predicted_flops, row.executed_flops
    error = f" ({100 * (predicted / executed - 1):+.1f} %)" if executed and not math.isnan(predicted) else ""
    return md.flops(predicted) + error


def _share(percent: float) -> str:
    return md.EMPTY if math.isnan(percent) else f"{percent:.3g} %"


def _price(cost: float, possible: float) -> str:
    """The known cost, and what calls with an unknown bill may have added."""
    if math.isnan(cost):
        return "no prices given"
    return f"{cost:.4f}" + (f" to {cost + possible:.4f}" if possible else "")
