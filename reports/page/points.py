"""What the page's figures and its comparison of two variants are drawn from, as plain data."""

import math
from collections.abc import Iterable
from typing import Any

from harness.benchmark import Metric
from harness.run_folder.plan import budget_text
from reports.comparison import Comparison
from reports.costs import Cost
from reports.figures import pareto_front
from reports.run import Run
from reports.tables import Table

COSTS = {"fit": "FLOPs of the fit", "all": "FLOPs of fit and tuning", "seconds": "seconds of fit and tuning"}
"""What quality can be drawn against; FLOPs are those that were executed."""


def figure_data(run: Run, comparison: Table[Comparison]) -> dict[str, Any]:
    """Everything that is drawn. No number in it is nan, which JSON does not know: None stands for it.

    ``points`` has a row for each variant and budget with its costs by the keys of `COSTS` and [mean, low, high] by
    metric; ``pareto`` metric -> budget -> cost -> the variants that nothing cheaper or equally cheap beats.
    """
    budgets = [budget_text(budget) for budget in run.plan.budgets]
    metrics = [metric for metric in run.metrics.values() if any(row.scores[metric.name].n for row in comparison)]
    tuned = any(row.cost.tuning_flops > 0 for row in comparison)
    costs = {key: text for key, text in COSTS.items() if tuned or key != "all"}
    if not tuned:
        costs["seconds"] = "seconds of the fit"
    return {
        "baseline": run.plan.baseline,
        "labels": run.plan.labels,
        "budgets": budgets,
        "costs": costs,
        "metrics": [_metric(metric) for metric in metrics],
        "points": [_point(row) for row in comparison],
        "pareto": {metric.name: _pareto(comparison, metric, costs) for metric in metrics},
    }


def pairs(run: Run, found: dict[str, Table[Any]]) -> list[dict[str, Any]]:
    """Every tested difference, ``a`` minus ``b``; no two variants stand in two rows of a metric and budget.

    Against the baseline they are those of ``differences``, which better and worse are said by everywhere; between two
    others those of ``pairs``, where there is such a table, whose p is corrected over all pairs in one metric.
    """
    base = run.plan.baseline
    rows = [_difference(row.variant, base, row) for row in found["differences"]]
    others = [row for row in found.get("pairs", ()) if base not in (row.variant, row.against)]
    return rows + [_difference(row.variant, row.against, row) for row in others]


def _difference(a: str, b: str, row: Any) -> dict[str, Any]:
    fields = {key: _finite(getattr(row, key)) for key in ("difference", "low", "high", "p_holm")}
    return {"a": a, "b": b, "budget": budget_text(row.budget), "metric": row.metric, **fields}


def _metric(metric: Metric) -> dict[str, Any]:
    about = metric.model_dump(include={"name", "title", "unit", "higher_is_better", "digits", "made_of", "signed"})
    return about | {"span": metric.least_span}


def _point(row: Comparison) -> dict[str, Any]:
    scores = {
        name: [_finite(score.mean), _finite(score.low), _finite(score.high)] for name, score in row.scores.items()
    }
    costs = {key: _finite(value) for key, value in _costs(row.cost).items()}
    return {"variant": row.variant, "budget": budget_text(row.budget), "costs": costs, "scores": scores}


def _costs(cost: Cost) -> dict[str, float]:
    return {
        "fit": cost.executed_flops,
        "all": cost.executed_flops + cost.tuning_flops,
        "seconds": cost.fit_seconds + cost.tuning_seconds,
    }


def _pareto(comparison: Iterable[Comparison], metric: Metric, costs: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for row in comparison:
        found.setdefault(budget_text(row.budget), {})
    for budget, by_cost in found.items():
        rows = [row for row in comparison if budget_text(row.budget) == budget]
        for key in costs:
            at = {row.variant: (_costs(row.cost)[key], row.scores[metric.name].mean) for row in rows}
            at = {variant: point for variant, point in at.items() if not any(map(math.isnan, point))}
            front = pareto_front(list(at.values()), higher_is_better=metric.higher_is_better)
            by_cost[key] = [variant for point in front for variant in at if at[variant] == point]
    return found


def _finite(value: float | None) -> float | None:
    """Nine digits: what is shown has fewer, and is rounded as report.md rounds the whole number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.9g}")
