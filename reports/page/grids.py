"""The report's tables as the page shows them: numbers as people write them, and what says nothing folded away."""

import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from harness import markdown as md
from harness.run_folder.plan import BudgetName, budget_text, flops_of
from reports.run import Run
from reports.tables import Diagnostic, Table

_ENDS = ("_low", "_high", "_n", "_failed")
_SCORES = ("mean", "difference", "detectable", "se")
"""Columns that are in the unit of the row's metric."""
_NOTHING = ("", md.EMPTY, "0", "none", "no")


class Cell(NamedTuple):
    """``order`` is what its column is sorted by, empty for text, which sorts by itself, and for what is missing."""

    text: str
    order: str = ""


class Grid(NamedTuple):
    """A table: ``numeric`` says which columns hold numbers, the first column names the row.

    ``constant`` are (header, value) of columns that were the same in every row, ``idle`` the names of rows that had
    nothing but zeros and dashes; neither is among ``headers`` and ``rows`` any more. ``file`` is the CSV file that has
    them all, and more digits.
    """

    caption: str
    headers: list[str]
    numeric: list[bool]
    rows: list[list[Cell]]
    file: str = ""
    constant: Sequence[tuple[str, str]] = ()
    idle: Sequence[str] = ()


def grid(run: Run, name: str, table: Table[Any], caption: str, without: Collection[str] = ()) -> Grid:
    """The table that ``tables/<name>.csv`` has, but for the columns ``without``; intervals stand behind their means."""
    dropped = {at for at, column in enumerate(table.columns) if column in without}
    lines = [list(table.cells(row)) for row in table]
    intervals = _intervals(table.columns)
    dropped |= {at for pair in intervals.values() for at in pair}
    kept = [at for at in range(len(table.columns)) if at not in dropped]
    numeric = [any(_is_number(line[at]) for line in lines) and table.columns[at] != "budget" for at in kept]
    rows = [[_cell(run, table.columns, line, at, intervals.get(at)) for at in kept] for line in lines]
    headers = [_header(run, table.columns[at]) for at in kept]
    return folded(Grid(caption, headers, numeric, rows, f"tables/{name}.csv"))


def diagnostic_grids(run: Run, diagnostics: Table[Diagnostic]) -> list[Grid]:
    """Figures that methods report of themselves: for each benchmark variants and budgets x figures."""
    places: dict[str, dict[tuple[str, BudgetName], dict[str, float]]] = {}
    for row in diagnostics:
        place, _, figure = row.diagnostic.rpartition(".")
        places.setdefault(place, {}).setdefault((row.variant, row.budget), {})[figure] = row.mean
    found = []
    for place, by_row in places.items():
        figures = list(dict.fromkeys(figure for values in by_row.values() for figure in values))
        rows = [
            [Cell(run.plan.labels[variant]), _budget(budget), *(_figure(values.get(figure)) for figure in figures)]
            for (variant, budget), values in by_row.items()
        ]
        headers, numeric = ["variant", "budget", *figures], [False, False, *[True] * len(figures)]
        found.append(folded(Grid(place or "fit", headers, numeric, rows, "tables/diagnostics.csv")))
    return found


def folded(full: Grid) -> Grid:
    """Without rows of zeros and dashes, then without columns that are the same in all rows that are left."""
    figures = [at for at, numeric in enumerate(full.numeric) if numeric]
    rows, idle = [], []
    for row in full.rows:
        if figures and all(_nothing(row[at]) for at in figures):
            idle.append(row[0].text)
        else:
            rows.append(row)
    if not rows:  # a table of zeros still says that all is zero
        rows, idle = full.rows, []
    same = [at for at in range(1, len(full.headers)) if len(rows) > 1 and len({row[at].text for row in rows}) == 1]

    def kept(line: Sequence[Any]) -> list[Any]:
        return [value for at, value in enumerate(line) if at not in same]

    return full._replace(
        headers=kept(full.headers),
        numeric=kept(full.numeric),
        rows=[kept(row) for row in rows],
        constant=[(full.headers[at], rows[0][at].text) for at in same],
        idle=list(dict.fromkeys(idle)),
    )


def _nothing(cell: Cell) -> bool:
    return cell.text in _NOTHING or (cell.order != "" and float(cell.order) == 0)


def _intervals(columns: Sequence[str]) -> dict[int, tuple[int, int]]:
    """Place of a value -> places of the ends of its interval: ``x``, ``x_low``, ``x_high``, or ``low`` and ``high``."""
    where = {column: at for at, column in enumerate(columns)}
    found = {at: (where[f"{c}_low"], where[f"{c}_high"]) for c, at in where.items() if f"{c}_low" in where}
    plain = next((c for c in ("mean", "difference", "value") if c in where), None)
    if plain is not None and "low" in where:
        found[where[plain]] = (where["low"], where["high"])
    return found


def _cell(run: Run, columns: Sequence[str], line: Sequence[Any], at: int, ends: tuple[int, int] | None) -> Cell:
    value, column = line[at], columns[at]
    if column == "budget":
        return _budget(value)
    if not _is_number(value):
        return Cell(_text(run, column, value))
    metric = line[columns.index("metric")] if "metric" in columns else None
    write = _writer(run, metric if metric in run.metrics and column in _SCORES else column)
    text = write(value)
    if ends is not None and _is_number(line[ends[0]]) and not math.isnan(line[ends[0]]):
        text += f" [{write(line[ends[0]])}, {write(line[ends[1]])}]"
    return Cell(text, "" if math.isnan(value) else f"{value:.15g}")


def _text(run: Run, column: str, value: Any) -> str:
    if value is None or value == "":
        return md.EMPTY
    if column in ("variant", "against"):
        return run.plan.labels.get(value, str(value))
    if column == "metric" and value in run.metrics:
        return run.metrics[value].title
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)


def _writer(run: Run, column: str) -> Callable[[float], str]:
    """How a column of numbers is written, by its name or by the metric that it is in the unit of."""
    if column in run.metrics:
        return lambda value: md.number(value, run.metrics[column].digits)
    if "flops" in column:
        return md.flops
    if "bytes" in column:
        return md.bytes_
    if column in ("p", "p_holm"):
        return md.p_value
    if "seconds" in column:
        return lambda value: md.number(value, 1 if value >= 1 or value == 0 else 3)
    return _plain


def _plain(value: float) -> str:
    if math.isnan(value):
        return md.EMPTY
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"


def _figure(value: float | None) -> Cell:
    return Cell(md.EMPTY) if value is None or math.isnan(value) else Cell(f"{value:.3g}", f"{value:.15g}")


def _budget(budget: BudgetName) -> Cell:
    """Sorted by size, as far as all budgets of a column are of one kind."""
    return Cell(budget_text(budget) if budget else "no triples", str(flops_of(budget) or budget))


def _header(run: Run, column: str) -> str:
    name = next((column.removesuffix(end) for end in _ENDS if column.removesuffix(end) in run.metrics), None)
    if name is None:
        return re.sub(r"\bflops\b", "FLOPs", column.replace("_", " "))
    ending = column[len(name) :].replace("_", " ")
    return run.metrics[name].title + ending


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
