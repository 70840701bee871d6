"""The report's tables as Markdown, made from the data frames."""

import math
from typing import TYPE_CHECKING, Any

from harness.names import BudgetName, budget_order, budget_text, flops_of
from reports import markdown as md
from reports.answers import Prompt
from reports.findings import Drop, multiple_choice_metrics, side
from reports.metrics import metric
from reports.runfolder import Run
from reports.tables import rows_where

if TYPE_CHECKING:
    import pandas as pd

OPERATORS_SHOWN = 5
FAILURES_SHOWN = 40
EXCESS = 1.05
"""A trained method stops at the first step that reaches the bill; more than this factor is not one step too many."""
_PARTS = ("", "_low", "_high", "_n", "_failed")
_ARROWS = {"better": " ↑", "worse": " ↓", "overlapping": "", "missing": ""}


def comparison_table(
    run: Run, comparison: "pd.DataFrame", names: list[str], budget: BudgetName, drops: list[Drop]
) -> str:
    """Variants x metrics at one budget: ``mean [low, high] (n, failures)`` and the marks."""
    dropped = {(drop.variant, drop.metric) for drop in drops if drop.budget == budget}
    choices = multiple_choice_metrics(run)
    rows = []
    for row in rows_where(comparison, budget=budget):
        cells = [md.escape(run.variants[row["variant"]]), str(row["n_seeds"])]
        for name in names:
            mark = _ARROWS[side(run, comparison, name, row["variant"], budget)] if name not in choices else ""
            mark += " ⚠" if (row["variant"], name) in dropped else ""
            cells.append(_score(row, name) + mark)
        rows.append(cells)
    return md.table(["variant", "seeds", *(_title(name) for name in names)], rows)


def score_of(comparison: "pd.DataFrame", variant: str, name: str, budget: BudgetName) -> str:
    """``mean [low, high]`` of one variant on one metric at ``budget``."""
    (row,) = rows_where(comparison, variant=variant, budget=budget)
    return _score(row, name, counts=False)


def difference_table(run: Run, differences: "pd.DataFrame", budget: BudgetName) -> str:
    rows = []
    for row in rows_where(differences, budget=budget):
        digits = metric(row["metric"]).digits
        unpaired = f", {row['unpaired']} unpaired" if row["unpaired"] else ""
        rows.append(
            [
                _title(row["metric"]),
                md.escape(run.variants[row["variant"]]),
                md.signed(row["difference"], digits),
                md.interval(row["low"], row["high"], digits),
                md.p_value(row["p"]),
                md.p_value(row["p_holm"]),
                f"{row['n']}{unpaired}",
            ]
        )
    rows.sort(key=lambda cells: [_title(name) for name in run.metrics].index(cells[0]))
    headers = ["metric", "variant", "difference", "95 % interval", "p", "p (Holm)", "pairs"]
    return md.table(headers, rows, text_columns=2)


def compute_table(run: Run, compute: "pd.DataFrame") -> str:
    """Variants x costs; accelerator memory has a column where there was one."""
    table = rows_where(compute)
    gpu = any(not math.isnan(row["cuda_peak_bytes"]) for row in table)
    rows = [
        [md.escape(run.variants[row["variant"]]), _budget(row["budget"]) if row["budget"] else "none"]
        + [md.flops(row["executed_flops"]), _forecast(row)]
        + [md.flops(row[f"{kind}_flops"]) for kind in ("formula", "paper")]
        + [md.number(row["fit_seconds"]), md.bytes_(row["peak_bytes"])]
        + ([md.bytes_(row["cuda_peak_bytes"])] if gpu else [])
        + [md.number(row["tokens"], 0), md.number(row["optimiser_steps"], 0)]
        + [f"{md.number(row['train_params'], 0)} ({_share(row['train_share'])})"]
        for row in table
    ]
    headers = ["variant", "triples", "executed FLOPs", "predicted FLOPs", "formula FLOPs", "paper FLOPs"]
    headers += ["seconds", "peak memory"]
    headers += ["peak GPU memory"] if gpu else []
    return md.table([*headers, "tokens", "optimiser steps", "trained parameters"], rows)


def stop_table(run: Run, compute: "pd.DataFrame") -> str:
    """Where the fits stopped whose budget was a bill; empty where there is none."""
    rows = []
    for row in rows_where(compute):
        limit = flops_of(row["budget"])
        if limit is None:
            continue
        share = row["executed_flops"] / limit
        if share >= 1:
            why = "bill reached" if share <= EXCESS else "bill exceeded"
        else:
            why = "no triples left" if row["triples"] >= run.environment["triples"]["n"] else "bill spent on triples"
        rows.append(
            [
                md.escape(run.variants[row["variant"]]),
                md.flops(limit),
                f"{md.number(100 * share)} %",
                why,
                md.number(row["triples"] * min(1.0, row["epochs"]), 0),
                md.number(row["epochs"], 2),
                md.number(row["optimiser_steps"], 0),
            ]
        )
    headers = ["variant", "bill", "executed", "stopped because", "triples", "epochs", "optimiser steps"]
    return md.table(headers, rows) if rows else ""


def stage_table(run: Run, stages: "pd.DataFrame") -> str:
    rows = [
        [
            md.escape(run.variants[row["variant"]]),
            md.escape(row["stage"]),
            md.flops(row["executed_flops"]),
            md.flops(row["predicted_flops"]),
            md.flops(row["formula_flops"]),
            md.number(row["seconds"]),
            md.bytes_(row["peak_bytes"]),
            md.number(row["tokens"], 0),
            md.number(row["steps"], 0),
            md.number(row["sampled_steps"], 0),
        ]
        for row in _largest_budget(rows_where(stages))
    ]
    headers = ["variant", "stage", "executed FLOPs", "predicted FLOPs", "formula FLOPs", "seconds", "peak memory"]
    headers += ["tokens", "steps", "profiled"]
    return md.table(headers, rows, text_columns=2)


def operator_table(run: Run, operators: "pd.DataFrame") -> str:
    """The operators with most FLOPs of each variant, with their share of the variant's sample."""
    rows = []
    for variant in dict.fromkeys(operators["variant"]):
        sample = rows_where(operators, variant=variant)
        total = sum(row["flops"] for row in sample)
        for row in sample[:OPERATORS_SHOWN]:
            share = 100 * row["flops"] / total if total else math.nan
            rows.append(
                [
                    md.escape(run.variants[variant]),
                    md.escape(row["stage"]),
                    f"`{row['operator']}`",
                    md.number(row["calls"], 0),
                    md.flops(row["flops"]),
                    f"{md.number(share)} %",
                    md.number(row["seconds"], 3),
                ]
            )
    headers = ["variant", "stage", "operator", "calls", "FLOPs", "share of the sample", "seconds"]
    return md.table(headers, rows, text_columns=3)


def breakdown_table(run: Run, breakdown: "pd.DataFrame", key: str, name: str) -> str:
    """Variants x values of ``key`` for one metric at the largest budget: ``mean [low, high]``."""
    at = rows_where(breakdown, metric=name, budget=run.budgets[-1])
    values = list(dict.fromkeys(row[key] for row in at))
    digits = metric(name).digits
    rows = []
    for variant in dict.fromkeys(row["variant"] for row in at):
        found = {row[key]: row for row in at if row["variant"] == variant}
        cells = [_group(found[v], digits) if v in found else md.EMPTY for v in values]
        rows.append([md.escape(run.variants[variant]), *cells])
    return md.table(["variant", *(md.escape(value) for value in values)], rows)


def sweep_table(run: Run, sweeps: "pd.DataFrame", keys: list[str]) -> str:
    import pandas as pd

    """The rows of the largest budget (a run that grew has older ones too); empty when there are none."""
    table = [row for row in rows_where(sweeps) if row["budget"] in (0, run.budgets[-1])]
    if not table:
        return ""
    keys = [key for key in keys if not all(pd.isna(row[key]) for row in table)]
    names = [name for name in run.metrics if any(row[f"{name}_n"] for row in table)]
    rows = [
        [md.escape(run.variants[row["variant"]]), _budget(row["budget"])]
        + [md.EMPTY if pd.isna(row[key]) else md.escape(row[key]) for key in keys]
        + [_score(row, name) for name in names]
        for row in table
    ]
    return md.table(["variant", "triples", *map(md.escape, keys), *map(_title, names)], rows)


DIAGNOSTIC_LEGEND = {
    "jaccard": "mean Jaccard similarity of the latent sets of two prompts; 1: every prompt gets the same set",
    "cosine_to_global": "mean cosine of a prompt's scores with the global mean difference; 1: nothing is conditional",
    "set_size": "latents selected per prompt",
    "median_support": "triples whose gate is open for a selected input latent, median over prompts and latents",
    "sure_share": "share of the selected output latents whose untruncated score has a bootstrap interval without 0; "
    "they were selected as extremes, so this is not a test",
    "edited_share": "share of the steered tokens that were changed",
    "edited_latents": "output latents that were edited at least once",
    "edits_in_top": "share of the edits on the 50 largest and 50 smallest columns of the map, the audited latents",
}


def diagnostic_table(run: Run, diagnostics: "pd.DataFrame") -> str:
    """Each variant's figures per benchmark at its largest budget; names are ``benchmark.figure``."""
    rows = rows_where(diagnostics)
    rows = _largest_budget(rows)
    means: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        place, _, figure = row["diagnostic"].rpartition(".")
        means.setdefault((row["variant"], place), {})[figure] = row["mean"]
    figures = list(dict.fromkeys(name for values in means.values() for name in values))
    lines = [
        [
            md.escape(run.variants[variant]),
            md.escape(place),
            *(f"{values[name]:.3g}" if name in values else md.EMPTY for name in figures),
        ]
        for (variant, place), values in means.items()
    ]
    legend = "".join(f"* `{name}`: {DIAGNOSTIC_LEGEND[name]}\n" for name in figures if name in DIAGNOSTIC_LEGEND)
    return md.table(["variant", "benchmark", *map(md.escape, figures)], lines, text_columns=2) + f"\n\n{legend}"


def drop_table(run: Run, drops: list[Drop]) -> str:
    rows = [
        [
            md.escape(run.variants[drop.variant]),
            _budget(drop.budget),
            md.escape(drop.metric),
            md.number(drop.value),
            md.number(drop.baseline),
            f"{-drop.points:+.1f}",
        ]
        for drop in drops
    ]
    return md.table(["variant", "triples", "task", "accuracy", "baseline", "difference in points"], rows)


def failure_table(failures: "pd.DataFrame") -> str:
    rows = [
        [f"`{row['cell']}`", md.escape(row["metric"]), md.escape(row["item"]), md.escape(row["reason"])]
        for row in rows_where(failures)[:FAILURES_SHOWN]
    ]
    return md.table(["cell", "metric", "item", "reason"], rows, text_columns=4)


def answer_table(prompt: Prompt) -> str:
    digits = metric(prompt.metric).digits
    rows = []
    for answer in prompt.answers:
        score = md.EMPTY if answer.value is None else md.number(answer.value, digits)
        text = "*(empty)*" if answer.text == "" else md.escape(answer.text or "")
        note = f"*({md.escape(answer.note)})*" if answer.note else ""
        rows.append([md.escape(answer.label), score, f"{text} {note}".strip()])
    return md.table(["variant", "score", "answer"], rows, text_columns=3)


def _score(row: dict[str, Any], name: str, *, counts: bool = True) -> str:
    """``mean [low, high] (n, failures)`` of a comparison row; without ``counts`` only where some failed."""
    return _estimate(*(row[f"{name}{part}"] for part in _PARTS), digits=metric(name).digits, counts=counts)


def _group(row: dict[str, Any], digits: int) -> str:
    """``mean [low, high]`` of a breakdown row, with the counts where some failed."""
    parts = (row[key] for key in ("mean", "low", "high", "n", "failed"))
    return _estimate(*parts, digits=digits, counts=False)


def _estimate(mean: float, low: float, high: float, n: int, failed: int, *, digits: int, counts: bool) -> str:
    tally = f" ({n}, {failed} failed)" if failed else f" ({n})" if counts else ""
    return f"{md.number(mean, digits)} {md.interval(low, high, digits)}{tally}" if n else f"{md.EMPTY}{tally}"


def _largest_budget(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each variant the rows at its largest budget."""
    largest: dict[str, BudgetName] = {}
    for row in rows:
        known = largest.get(row["variant"], row["budget"])
        largest[row["variant"]] = max(row["budget"], known, key=budget_order)
    return [row for row in rows if row["budget"] == largest[row["variant"]]]


def _budget(budget: BudgetName) -> str:
    """A number of triples as it is, a bill in words."""
    return str(budget) if isinstance(budget, int) else budget_text(budget)


def _forecast(row: dict[str, Any]) -> str:
    """Predicted FLOPs, and their error against the executed ones."""
    predicted, executed = row["predicted_flops"], row["executed_flops"]
    error = f" ({100 * (predicted / executed - 1):+.1f} %)" if executed and not math.isnan(predicted) else ""
    return md.flops(predicted) + error


def _title(name: str) -> str:
    return md.escape(metric(name).title)


def _share(percent: float) -> str:
    return md.EMPTY if math.isnan(percent) else f"{percent:.3g} %"
