"""How far the two judges of a run agree: the figures, the second judge's means, and both as Markdown."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness import markdown as md
from harness.agreement import STATISTICS, Kind, Pair, agreement
from harness.benchmark import Record
from reports.metrics import metric
from reports.runfolder import Cell, Run
from reports.tables import rows_where, summary

if TYPE_CHECKING:
    import pandas as pd

_COUNTS = ("mean", "low", "high", "n", "failed")
_UNITLESS = ("pearson", "spearman", "kappa", "kendall")


def agreement_table(run: Run) -> "pd.DataFrame":
    """Every figure of `harness.agreement` for each metric that both judges judged, over all done cells but sweeps.

    Columns: metric, statistic, value, low, high, n, failed_first, failed_second. A model is a variant at a budget. A
    metric without a pair has one row with n = 0 and no statistic.
    """
    import pandas as pd

    rows = []
    for name in dict.fromkeys(record.metric for _, records in _judged_twice(run) for record, _ in records):
        found = [(cell, a, b) for cell, records in _judged_twice(run) for a, b in records if a.metric == name]
        failed = {
            "failed_first": sum(a.value is None for _, a, _ in found),
            "failed_second": sum(b.value is None for _, _, b in found),
        }
        pairs = [
            Pair(f"{cell.variant} at {cell.budget}", cell.seed, a.cluster, a.value, b.value)
            for cell, a, b in found
            if a.value is not None and b.value is not None
        ]
        if not pairs:
            rows.append({"metric": name, "n": 0} | failed)
        rows += [
            {"metric": name} | vars(figure) | failed for figure in (agreement(pairs, _kind(name)) if pairs else ())
        ]
    columns = ["metric", "statistic", "value", "low", "high", "n", "failed_first", "failed_second"]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def second_means(run: Run) -> "pd.DataFrame":
    """The second judge's means: judge, variant, budget, metric, mean, low, high, n, failed. Never mixed with others."""
    import pandas as pd

    rows = []
    for variant in run.variants:
        for budget in run.budgets:
            done = [cell for cell in run.cells_of(variant, budget) if cell.done]
            records = [(cell.seed, r) for cell in done for name in run.judged_twice for r in cell.second.get(name, ())]
            for name in dict.fromkeys(record.metric for _, record in records):
                row = {
                    "judge": (run.second_judge or {}).get("label"),
                    "variant": variant,
                    "budget": budget,
                    "metric": name,
                }
                rows.append(row | summary([(s, r) for s, r in records if r.metric == name], _COUNTS))
    columns = ["judge", "variant", "budget", "metric", *_COUNTS]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def section(run: Run, frames: "dict[str, pd.DataFrame]") -> dict[str, Any]:
    """``figures``: the table of figures and what each is. ``means``: (metric, table of each judge's means)."""
    names = list(dict.fromkeys(frames["agreement"]["metric"]))
    means = [(name, _means(run, frames["comparison"], frames["second_judge"], name)) for name in names]
    return {"figures": _figures(frames["agreement"]), "means": means}


def _figures(table: "pd.DataFrame") -> str:
    """The figures as a table, and what each of them is."""
    rows = []
    for row in rows_where(table):
        name = f"`{row['statistic']}`" if row["n"] else md.EMPTY
        failed = f"{row['failed_first']}, {row['failed_second']}"
        rows.append([md.escape(metric(row["metric"]).title), name, _figure(row), str(row["n"]), failed])
    shown = set(table["statistic"])
    legend = "".join(f"* `{name}`: {text}\n" for name, text in STATISTICS.items() if name in shown)
    headers = ["metric", "figure", "value", "n", "failed (first, second judge)"]
    return md.table(headers, rows, text_columns=2) + f"\n\n{legend}"


def _means(run: Run, comparison: "pd.DataFrame", means: "pd.DataFrame", name: str) -> str:
    """Each judge's means of one metric at the largest budget, a row a judge: no row mixes two."""
    budget, digits = run.budgets[-1], metric(name).digits
    first = {row["variant"]: row for row in rows_where(comparison, budget=budget)}
    second = {row["variant"]: row for row in rows_where(means, budget=budget, metric=name)}
    judges = {"first": run.environment["judge"], "second": run.second_judge}
    cells: dict[str, list[str]] = {which: [] for which in judges}
    for variant in run.variants:
        keys = (name, f"{name}_low", f"{name}_high")
        cells["first"].append(_mean([first[variant][key] for key in keys], digits))
        row = second.get(variant)
        cells["second"].append(_mean([row[key] for key in _COUNTS[:3]], digits) if row else md.EMPTY)
    rows = [[md.code((judges[which] or {}).get("label")), *found] for which, found in cells.items()]
    return md.table(["judge", *map(md.escape, run.variants.values())], rows)


def _judged_twice(run: Run) -> Iterator[tuple[Cell, list[tuple[Record, Record]]]]:
    """(cell, records of both judges about the same item) for every done cell of a row of the comparison."""
    for cell in run.cells:
        if not cell.done or cell.sweep:
            continue
        for name in run.judged_twice:
            others = {(record.metric, record.item): record for record in cell.second.get(name, ())}
            mine = cell.records.get(name, ())
            yield cell, [(r, others[r.metric, r.item]) for r in mine if (r.metric, r.item) in others]


def _kind(name: str) -> Kind:
    unit = metric(name).unit
    if unit == "rating 1-10":
        return "rating"
    # A length-controlled win rate is made of predictions, which are no verdicts.
    return "verdict" if unit == "%" and not name.endswith("_lc") else "value"


def _figure(row: dict[str, Any]) -> str:
    if not row["n"]:
        return "no answer was judged by both"
    unitless = row["statistic"].startswith(_UNITLESS)
    digits = 2 if unitless or row["statistic"].startswith("mean") else 1
    return f"{md.number(row['value'], digits)} {md.interval(row['low'], row['high'], digits)}"


def _mean(values: Sequence[float], digits: int) -> str:
    """``mean [low, high]``."""
    mean, low, high = values
    return md.EMPTY if mean != mean else f"{md.number(mean, digits)} {md.interval(low, high, digits)}"
