"""What alignment cost, as data frames: the compute table, the bill by stage, the operator sample."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reports.runfolder import Cell, Run

if TYPE_CHECKING:
    import pandas as pd

_NAN = float("nan")
_STAGE_MEANS = ("formula_flops", "seconds", "tokens", "steps", "sampled_steps")
_STAGE_COLUMNS = ("executed_flops", "predicted_flops", "formula_flops", "seconds", "peak_bytes", *_STAGE_MEANS[2:])
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

    ``train_share`` is the percentage of the model's parameters that were trained; ``predicted_flops`` what was
    expected before the fit, ``triples`` how many it was given and ``epochs`` how often it went over them, each nan
    where unknown.
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
                | {"executed_flops": columns["executed_flops"], "predicted_flops": _predicted(bills)}
                | {key: columns[key] for key in ("formula_flops", "paper_flops")}
                | {key: columns[key] for key in ("fit_seconds", "peak_bytes")}
                | {"cuda_peak_bytes": max((bill["cuda_peak_bytes"] or _NAN for bill in bills), default=_NAN)}
                | {"triples": _mean(bills, "n_triples"), "epochs": _mean(bills, "epochs")}
                | {"tokens": _mean(bills, "tokens"), "optimiser_steps": _mean(bills, "optimiser_steps")}
                | {"train_params": columns["train_params"], "total_params": total}
                | {"train_share": 100 * columns["train_params"] / total if total else _NAN}
            )
    return pd.DataFrame(rows)


def stages(run: Run) -> "pd.DataFrame":
    """The bill by stage, means over seeds.

    Columns: variant, budget, stage, executed_flops, predicted_flops (nan without a prediction), formula_flops, seconds,
    peak_bytes (the largest), tokens, steps, sampled_steps (those that `operators` counts).
    """
    import pandas as pd

    rows = []
    for variant in run.variants:
        for budget, cells in run.groups(variant):
            whole = [cell.bill for cell in cells if cell.bill]
            bills = [{stage["name"]: stage for stage in bill["stages"]} for bill in whole]
            for name in dict.fromkeys(name for bill in bills for name in bill):
                found = [bill[name] for bill in bills if name in bill]
                row = {"variant": variant, "budget": budget, "stage": name}
                row |= {"executed_flops": _mean(found, "executed_flops"), "predicted_flops": _predicted(whole, name)}
                row |= {"peak_bytes": max(stage["peak_bytes"] for stage in found)}
                rows.append(row | {key: _mean(found, key) for key in _STAGE_MEANS})
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


def _predicted(bills: Sequence[dict[str, Any]], stage: str | None = None) -> float:
    """Mean predicted FLOPs of all stages, or of one; nan where a bill has no prediction.

    A prediction without the stage expects nothing there. Under a bill for a budget, training that goes on until it is
    reached is not what was predicted, so there is none.
    """
    totals = []
    for bill in bills:
        stages = bill.get("predicted")
        if stages is None or (bill.get("flops_limit") is not None and bill["epochs"] != 1.0):
            return _NAN
        totals.append(sum(stages.values()) if stage is None else stages.get(stage, 0))
    return sum(totals) / len(totals) if totals else _NAN


def _mean(bills: Sequence[dict[str, Any]], key: str) -> float:
    """The mean of one figure; nan without bills, or where a bill has none (no paper figure)."""
    values = [bill[key] for bill in bills if bill.get(key) is not None]
    return sum(values) / len(values) if values and len(values) == len(bills) else _NAN
