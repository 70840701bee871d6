"""Typed rows, and the CSV files they are written to."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from harness.run_folder.plan import BudgetName, budget_order

NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """A row of a table. By default every field is a cell of the CSV file."""

    def cells(self) -> dict[str, Any]:
        """The cells of the CSV file by column; nan and None are empty there."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Score(Row):
    """The mean of a metric with its 95 % interval (nan where nothing was scored), scored and failed records."""

    mean: float
    low: float
    high: float
    n: int
    failed: int


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Table(Generic[R]):
    """Rows of one kind, and the columns of their CSV file, which an empty table has too."""

    columns: Sequence[str]
    rows: Sequence[R]

    @classmethod
    def of(cls, kind: type[R], rows: Iterable[R]) -> "Table[R]":
        """A table of rows whose fields are its columns."""
        return cls([field.name for field in fields(kind)], list(rows))

    def __iter__(self) -> Iterator[R]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, **equal: Any) -> list[R]:
        """The rows whose fields have the values given."""
        return [row for row in self.rows if all(getattr(row, name) == value for name, value in equal.items())]

    def write(self, path: Path) -> None:
        """Write the CSV file ``path``."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: _text(value) for name, value in row.cells().items()} for row in self.rows)


def largest_budget(rows: Iterable[Any]) -> list[Any]:
    """Of each variant the rows at its largest budget; rows have a ``variant`` and a ``budget``."""
    rows = list(rows)
    largest: dict[str, BudgetName] = {}
    for row in rows:
        largest[row.variant] = max(row.budget, largest.get(row.variant, row.budget), key=budget_order)
    return [row for row in rows if row.budget == largest[row.variant]]


def _text(value: Any) -> Any:
    """15 digits: every whole number (bytes, parameters) stays whole and no rounding noise shows."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.15g}"
    return value
