"""Tables as LaTeX for a paper, with booktabs' rules."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from reports.tables import Table


def write_latex(table: Table, path: Path) -> None:
    """Write all columns and rows of ``table`` as a tabular, to be read by \\input; nan and None are empty."""
    path.write_text(latex(table.columns, map(table.cells, table)), encoding="utf-8")


def latex(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A booktabs tabular, escaped; fractions have four digits, which is what the intervals carry, numbers stand right.

    The preamble needs \\usepackage{booktabs}.
    """
    found = [list(row) for row in rows]
    aligned = ["right" if all(map(_is_number, column)) else "left" for column in zip(*found, strict=True)]
    text = tabulate(
        [[_text(value) for value in row] for row in found],
        [_text(column) for column in columns],
        tablefmt="latex_booktabs",
        disable_numparse=True,
        colalign=aligned or None,
    )
    return re.sub(" {2,}", " ", text) + "\n"  # its padding is most of a long table


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else re.sub(r"\s+", " ", str(value))
