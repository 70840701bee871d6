"""The report's tables of costs as Markdown: bills, where fits stopped, tuning, judging."""

import math
from collections.abc import Callable

from harness import markdown as md
from harness.run_folder.plan import flops_of
from reports.costs import Compute, Judging, flops_text
from reports.places import shown
from reports.run import Run
from reports.sections import Columns, as_table, at_largest_budget, label_of
from reports.tables import Table
from reports.tuning import Tuned

EXCESS = 1.05
"""A trained method stops at the first step that reaches the bill; more than this factor is not one step too many."""


def compute_table(run: Run, compute: Table[Compute]) -> str:
    """Variants x costs at each one's largest budget; accelerator memory has a column where there was one."""

    def trained(row: Compute) -> str:
        share = md.EMPTY if math.isnan(row.train_share) else f"{row.train_share:.3g} %"
        return f"{md.number(row.train_params, 0)} ({share})"

    columns: dict[str, Callable[[Compute], str]] = {
        "variant": lambda row: label_of(run, row.variant),
        "triples": lambda row: md.budget(row.budget) if row.budget else "none",
        "executed FLOPs": flops_text,
        "predicted FLOPs": _forecast,
        "formula FLOPs": lambda row: md.flops(row.formula_flops),
        "paper FLOPs": lambda row: md.flops(row.paper_flops),
        "peak memory": lambda row: md.bytes_(row.peak_bytes),
        "peak GPU memory": lambda row: md.bytes_(row.cuda_peak_bytes),
        "tokens": lambda row: md.number(row.tokens, 0),
        "optimiser steps": lambda row: md.number(row.optimiser_steps, 0),
        "trained parameters": trained,
    }
    if all(math.isnan(row.cuda_peak_bytes) for row in compute):
        del columns["peak GPU memory"]
    return as_table(at_largest_budget(compute), columns)


def tuning_table(run: Run, tuned: Table[Tuned]) -> str:
    """Variants x how their tuning at the largest budget went."""

    def failures(row: Tuned) -> str:
        failed = f", {row.failed} failed" if row.failed else ""
        return f"{row.below_floor} of {row.all_trials}{failed}"

    columns: Columns[Tuned] = {
        "variant": lambda row: label_of(run, row.variant),
        "triples": lambda row: md.budget(row.budget),
        "trials (fits)": lambda row: f"{md.number(row.trials, 0)} ({row.fits:.3g})",
        "base": lambda row: md.number(row.base_score, 3),
        "own values": lambda row: md.number(row.own_score, 3),
        "winner": lambda row: md.number(row.best_score, 3),
        "median trial": lambda row: md.number(row.median_score, 3),
        "near the best": lambda row: md.EMPTY if math.isnan(row.near) else f"{row.near:.0f} %",
        "below the floor": failures,
        "seconds": lambda row: md.number(row.seconds),
    }
    return as_table(at_largest_budget(tuned), columns, short=True)


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
        "variant": lambda row: label_of(run, row.variant),
        "bill": lambda row: md.flops(limits[row.budget]),
        "executed": lambda row: f"{md.number(100 * share(row))} %",
        "stopped because": reason,
        "triples": lambda row: md.number(row.triples * min(1.0, row.epochs), 0),
        "epochs": lambda row: md.number(row.epochs, 2),
        "optimiser steps": lambda row: md.number(row.optimiser_steps, 0),
    }
    return as_table([row for row in compute if row.budget in limits], columns, short=True) if limits else ""


def ratio_table(run: Run, compute: Table[Compute]) -> str:
    """Costs of the variants that have a figure by the paper's convention, over those of the cheapest one by it.

    At each variant's largest budget; empty unless two such variants stand at the same one.
    """
    measured = [row for row in compute if flops_of(row.budget) is None]  # a bill makes costs alike
    priced = [row for row in at_largest_budget(measured) if row.paper_flops > 0]
    if len({row.budget for row in priced}) != 1 or len({row.paper_flops for row in priced}) < 2:
        return ""
    least = min(priced, key=lambda row: row.paper_flops)
    columns: Columns[Compute] = {
        "variants": lambda row: f"{label_of(run, row.variant)} : {label_of(run, least.variant)}",
        "executed": lambda row: md.number(row.executed_flops / least.executed_flops),
        "formula": lambda row: md.number(row.formula_flops / least.formula_flops),
        "paper": lambda row: md.number(row.paper_flops / least.paper_flops, 4),
    }
    return as_table([row for row in priced if row.paper_flops > least.paper_flops], columns)


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
        "answered as": lambda row: md.escape(shown(" ".join(sorted(row.account.models)))) or md.EMPTY,
        "verdicts wanted": lambda row: md.number(row.account.requests, 0),
        "at hand": lambda row: md.number(row.account.reused, 0),
        "calls": lambda row: md.number(row.account.calls, 0),
        "answered": lambda row: md.number(row.account.answered, 0),
        "failed": lambda row: md.number(row.account.calls - row.account.answered, 0),
        "prompt tokens": lambda row: md.number(row.account.prompt_tokens, 0),
        "reply tokens": lambda row: md.number(row.account.completion_tokens, 0),
        "cost": price,
    }
    return as_table(judging, columns, 2)


def _forecast(row: Compute) -> str:
    """Predicted FLOPs, and their error against the executed ones."""
    predicted, executed = row.predicted_flops, row.executed_flops
    error = f" ({100 * (predicted / executed - 1):+.1f} %)" if executed and not math.isnan(predicted) else ""
    return md.flops(predicted) + error
