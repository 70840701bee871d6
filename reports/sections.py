"""The report's tables of scores and answers as Markdown, made from the data frames."""

import json
from typing import TYPE_CHECKING, Any

from harness import markdown as md
from harness.names import BudgetName
from reports.answers import Prompt
from reports.findings import Drop, multiple_choice_metrics, side
from reports.metrics import metric
from reports.runfolder import Run
from reports.tables import rows_where

if TYPE_CHECKING:
    import pandas as pd

FAILURES_SHOWN = 40
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
    """The rows of the largest budget (a run that grew has older ones too); empty when there are none."""
    import pandas as pd

    table = [row for row in rows_where(sweeps) if row["budget"] in (0, run.budgets[-1])]
    if not table:
        return ""
    keys = [key for key in keys if not all(pd.isna(row[key]) for row in table)]
    names = [name for name in run.metrics if any(row[f"{name}_n"] for row in table)]
    rows = [
        [md.escape(run.variants[row["variant"]]), md.budget(row["budget"])]
        + [md.EMPTY if pd.isna(row[key]) else md.escape(row[key]) for key in keys]
        + [_score(row, name) for name in names]
        for row in table
    ]
    return md.table(["variant", "triples", *map(md.escape, keys), *map(_title, names)], rows)


def drop_table(run: Run, drops: list[Drop]) -> str:
    rows = [
        [
            md.escape(run.variants[drop.variant]),
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
    for variant in run.suite["variants"]:
        params = variant.get("params") or {}
        values = ", ".join(f"{name} = {json.dumps(value)}" for name, value in params.items())
        label = md.escape(run.variants[variant["name"]])
        rows.append([label, f"`{variant['method']}`", md.escape(values) or md.EMPTY])
    return md.table(["variant", "method", "set by the suite"], rows, text_columns=3)


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


def _title(name: str) -> str:
    return md.escape(metric(name).title)
