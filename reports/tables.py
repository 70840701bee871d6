"""The tables of a run as data frames: comparison, sweeps, differences, breakdowns, diagnostics, failures."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from harness.benchmark import Record
from harness.names import BudgetName, budget_order
from harness.statistics import Measurement, estimate_mean, holm, paired_difference
from reports.costs import compute_columns
from reports.runfolder import Cell, Run

if TYPE_CHECKING:
    import pandas as pd

_NAN = float("nan")


def comparison(run: Run) -> "pd.DataFrame":
    """One row per variant and budget: who it is, ``n_seeds``, five columns per metric, the bill.

    ``<m>``, ``<m>_low``, ``<m>_high`` are mean and 95 % interval (empty where nothing was scored), ``<m>_n``
    the scored records over all seeds, ``<m>_failed`` those that failed. Only cells that are done count
    (``n_seeds`` of them). A variant without triples has its one result at every budget. The bill is the mean
    over seeds, peak memory the largest.
    """
    import pandas as pd

    methods = {v["name"]: v["method"] for v in run.suite["variants"]}
    return pd.DataFrame(
        [
            {"variant": variant, "method": methods[variant], "budget": budget}
            | _scores(run, _done(run.cells_of(variant, budget)))
            for variant in run.variants
            for budget in run.budgets
        ]
    )


def sweeps(run: Run) -> "pd.DataFrame":
    """The comparison's columns and the swept keys, one row per swept point."""
    import pandas as pd

    keys = list(dict.fromkeys(key for cells in run.sweeps for key in cells[0].sweep or {}))
    rows = []
    for cells in run.sweeps:
        first = cells[0]
        row = {"variant": first.variant, "method": first.method, "budget": first.budget}
        rows.append(row | _scores(run, _done(cells)) | {key: (first.sweep or {}).get(key) for key in keys})
    columns = ["variant", "method", "budget", *_scores(run, []), *keys]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def differences(run: Run) -> "pd.DataFrame":
    """Every variant minus the baseline on the same items and seeds, per metric and budget.

    Columns: variant, budget, metric, difference, low, high, p, p_holm, n, unpaired. ``p_holm`` is corrected
    over all comparisons at one budget. A metric that has no pair is left out.
    """
    import pandas as pd

    rows = []
    for budget in run.budgets:
        base = _done(run.cells_of(run.baseline, budget))
        family = []
        for variant in run.variants:
            cells = _done(run.cells_of(variant, budget)) if variant != run.baseline else []
            for metric in run.metrics:
                before, after = _measurements(base, metric), _measurements(cells, metric)
                if not {(m.seed, m.item) for m in before} & {(m.seed, m.item) for m in after}:
                    continue
                d = paired_difference(after, before)
                family.append(
                    {"variant": variant, "budget": budget, "metric": metric, "difference": d.mean}
                    | {"low": d.low, "high": d.high, "p": d.p, "n": d.n, "unpaired": d.unpaired}
                )
        for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = adjusted
        rows += family
    columns = ["variant", "budget", "metric", "difference", "low", "high", "p", "p_holm", "n", "unpaired"]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def breakdown(run: Run, key: str) -> "pd.DataFrame":
    """Means per value of ``raw[key]`` (MT-Bench's ``category`` and ``turn``) for the records that carry it.

    Columns: variant, budget, metric, ``key``, mean, low, high, n, failed.
    """
    import pandas as pd

    rows = []
    for variant in run.variants:
        for budget in run.budgets:
            groups: dict[tuple[str, Any], list[tuple[int, Record]]] = defaultdict(list)
            for cell in _done(run.cells_of(variant, budget)):
                for record in _records(cell):
                    if key in record.raw:
                        groups[record.metric, record.raw[key]].append((cell.seed, record))
            for (metric, value), found in groups.items():
                row = {"variant": variant, "budget": budget, "metric": metric, key: value}
                rows.append(row | summary(found, ("mean", "low", "high", "n", "failed")))
    columns = ["variant", "budget", "metric", key, "mean", "low", "high", "n", "failed"]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def diagnostics(run: Run) -> "pd.DataFrame":
    """What the methods say about themselves, averaged over seeds.

    Columns: variant, budget, diagnostic, mean, n_seeds.
    """
    import pandas as pd

    rows = []
    for variant in run.variants:
        for budget, cells in run.groups(variant):
            for name in dict.fromkeys(name for cell in cells for name in cell.diagnostics):
                values = [cell.diagnostics[name] for cell in cells if name in cell.diagnostics]
                row = {"variant": variant, "budget": budget, "diagnostic": name}
                rows.append(row | {"mean": sum(values) / len(values), "n_seeds": len(values)})
    return pd.DataFrame(rows, columns=pd.Index(["variant", "budget", "diagnostic", "mean", "n_seeds"]))


def failures(run: Run) -> "pd.DataFrame":
    """Every failed record of every cell that is over: cell, benchmark, metric, item, reason.

    The second judge's are those of the benchmark "<name>, second judge".
    """
    import pandas as pd

    rows = [
        {"cell": cell.name, "benchmark": name, "metric": r.metric, "item": r.item, "reason": r.error}
        for cell in run.cells
        for name, records in (
            cell.records | {f"{name}, second judge": found for name, found in cell.second.items()}
        ).items()
        for r in records
        if r.error is not None
    ]
    return pd.DataFrame(rows, columns=pd.Index(["cell", "benchmark", "metric", "item", "reason"]))


def rows_where(frame: "pd.DataFrame", **equal: Any) -> list[dict[str, Any]]:
    """The rows of ``frame`` whose columns have the values given, as dictionaries."""
    rows = [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
    return [row for row in rows if all(row[key] == value for key, value in equal.items())]


def _scores(run: Run, cells: Sequence[Cell]) -> dict[str, Any]:
    """``n_seeds``, five columns per metric and the bill, for the cells of one row."""
    row: dict[str, Any] = {"n_seeds": len(cells)}
    for metric in run.metrics:
        found = [(cell.seed, r) for cell in cells for r in _records(cell) if r.metric == metric]
        names = (metric, f"{metric}_low", f"{metric}_high", f"{metric}_n", f"{metric}_failed")
        row |= summary(found, names)
    return row | compute_columns(cells)


def summary(found: Iterable[tuple[int, Record]], names: tuple[str, str, str, str, str]) -> dict[str, Any]:
    """Mean, its interval, scored and failed records of (seed, record), under ``names``."""
    found = list(found)
    scored = [Measurement(seed, r.cluster, r.item, float(r.value)) for seed, r in found if r.value is not None]
    failed = len(found) - len(scored)
    if not scored:
        return dict(zip(names, (_NAN, _NAN, _NAN, 0, failed), strict=True))
    e = estimate_mean(scored)
    return dict(zip(names, (e.mean, e.low, e.high, e.n, failed), strict=True))


def _measurements(cells: Iterable[Cell], metric: str) -> list[Measurement]:
    return [
        Measurement(cell.seed, r.cluster, r.item, float(r.value))
        for cell in cells
        for r in _records(cell)
        if r.metric == metric and r.value is not None
    ]


def _records(cell: Cell) -> Iterable[Record]:
    return (record for records in cell.records.values() for record in records)


def _done(cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.done]


def largest_budget(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each variant the rows at its largest budget."""
    largest: dict[str, BudgetName] = {}
    for row in rows:
        known = largest.get(row["variant"], row["budget"])
        largest[row["variant"]] = max(row["budget"], known, key=budget_order)
    return [row for row in rows if row["budget"] == largest[row["variant"]]]
