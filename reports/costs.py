"""What alignment cost, as data frames: the compute table, the bill by stage, the operator sample."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reports.runfolder import Cell, Run

if TYPE_CHECKING:
    import pandas as pd

_NAN = float("nan")
_STAGE_COLUMNS = ("executed_flops", "formula_flops", "seconds", "tokens", "steps", "sampled_steps")
_OPERATOR_COLUMNS = ("stage", "operator", "calls", "flops", "seconds")


def compute_columns(cells: Sequence[Cell]) -> dict[str, Any]:
    """The bill's part of a comparison row: means over the cells, peak memory their largest; nan without
    cells."""
    bills = [cell.bill for cell in cells if cell.bill is not None]
    return {
        "train_params": _mean(bills, "train_params"),
        "executed_flops": _mean(bills, "executed_flops"),
        "formula_flops": _mean(bills, "formula_flops"),
        "paper_flops": _mean(bills, "paper_flops"),
        "fit_seconds": _mean(bills, "seconds"),
        "peak_bytes": max((bill["peak_bytes"] for bill in bills), default=_NAN),
    }


def compute(run: Run) -> "pd.DataFrame":
    """One row per variant and budget (budget 0, once, for a variant without triples), means over seeds.

    ``train_share`` is the percentage of the model's parameters that were trained.
    """
    import pandas as pd

    rows = []
    for variant in run.variants:
        for budget, cells in run.groups(variant):
            bills = [cell.bill for cell in cells if cell.bill is not None]
            columns = compute_columns(cells)
            total = _mean(bills, "total_params")
            rows.append(
                {"variant": variant, "method": cells[0].method, "budget": budget, "n_seeds": len(cells)}
                | {key: columns[key] for key in ("executed_flops", "formula_flops", "paper_flops")}
                | {key: columns[key] for key in ("fit_seconds", "peak_bytes")}
                | {"cuda_peak_bytes": max((bill["cuda_peak_bytes"] or _NAN for bill in bills), default=_NAN)}
                | {"tokens": _mean(bills, "tokens"), "optimiser_steps": _mean(bills, "optimiser_steps")}
                | {"train_params": columns["train_params"], "total_params": total}
                | {"train_share": 100 * columns["train_params"] / total if total else _NAN}
            )
    return pd.DataFrame(rows)


def stages(run: Run) -> "pd.DataFrame":
    """The bill by stage, means over seeds.

    Columns: variant, budget, stage, executed_flops, formula_flops, seconds, tokens, steps, sampled_steps (those that
    `operators` counts).
    """
    import pandas as pd

    rows = []
    for variant in run.variants:
        for budget, cells in run.groups(variant):
            bills = [{stage["name"]: stage for stage in cell.bill["stages"]} for cell in cells if cell.bill]
            for name in dict.fromkeys(name for bill in bills for name in bill):
                found = [bill[name] for bill in bills if name in bill]
                row = {"variant": variant, "budget": budget, "stage": name}
                rows.append(row | {key: _mean(found, key) for key in _STAGE_COLUMNS})
    return pd.DataFrame(rows, columns=pd.Index(["variant", "budget", "stage", *_STAGE_COLUMNS]))


def operators(run: Run) -> "pd.DataFrame":
    """The profiler's sample from each variant's first cell at its largest budget, by falling FLOPs.

    Columns: variant, stage, operator, calls, flops, seconds.
    """
    import pandas as pd

    rows = []
    for variant in run.variants:
        groups = run.groups(variant)
        bill = groups[-1][1][0].bill if groups else None
        for row in sorted(bill["operators"] if bill else [], key=lambda row: -row["flops"]):
            rows.append({"variant": variant} | {key: row[key] for key in _OPERATOR_COLUMNS})
    return pd.DataFrame(rows, columns=pd.Index(["variant", *_OPERATOR_COLUMNS]))


def _mean(bills: Sequence[dict[str, Any]], key: str) -> float:
    """The mean of one figure; nan without bills, or where a bill has none (no paper figure)."""
    values = [bill[key] for bill in bills]
    return sum(values) / len(values) if values and None not in values else _NAN
