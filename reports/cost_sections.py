"""The report's tables of costs as Markdown, made from the data frames."""

import math
from typing import TYPE_CHECKING, Any

from harness import markdown as md
from harness.names import flops_of
from reports.runfolder import Run
from reports.tables import largest_budget, rows_where

if TYPE_CHECKING:
    import pandas as pd

OPERATORS_SHOWN = 5
EXCESS = 1.05
"""A trained method stops at the first step that reaches the bill; more than this factor is not one step too many."""


def compute_table(run: Run, compute: "pd.DataFrame") -> str:
    """Variants x costs; accelerator memory has a column where there was one."""
    table = rows_where(compute)
    gpu = any(not math.isnan(row["cuda_peak_bytes"]) for row in table)
    rows = [
        [md.escape(run.variants[row["variant"]]), md.budget(row["budget"]) if row["budget"] else "none"]
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


def ratio_table(run: Run, compute: "pd.DataFrame") -> str:
    """Costs of the variants that have a figure by the paper's convention, over those of the cheapest one by it.

    At each variant's largest budget; empty unless two such variants stand at the same one.
    """
    rows = [row for row in rows_where(compute) if flops_of(row["budget"]) is None]  # a bill makes costs alike
    priced = [row for row in largest_budget(rows) if row["paper_flops"] > 0]
    if len({row["budget"] for row in priced}) != 1 or len({row["paper_flops"] for row in priced}) < 2:
        return ""
    least = min(priced, key=lambda row: row["paper_flops"])
    kinds = ("executed_flops", "formula_flops", "paper_flops")
    rows = [
        [md.escape(f"{run.variants[row['variant']]} : {run.variants[least['variant']]}")]
        + [md.number(row[kind] / least[kind], 4 if kind == "paper_flops" else 1) for kind in kinds]
        for row in priced
        if row["paper_flops"] > least["paper_flops"]
    ]
    return md.table(["variants", "executed", "formula", "paper"], rows)


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
        for row in largest_budget(rows_where(stages))
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


def _forecast(row: dict[str, Any]) -> str:
    """Predicted FLOPs, and their error against the executed ones."""
    predicted, executed = row["predicted_flops"], row["executed_flops"]
    error = f" ({100 * (predicted / executed - 1):+.1f} %)" if executed and not math.isnan(predicted) else ""
    return md.flops(predicted) + error


def _share(percent: float) -> str:
    return md.EMPTY if math.isnan(percent) else f"{percent:.3g} %"
