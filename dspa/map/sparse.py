"""Sparse rows: densities and differences of triples, gates of latents. Only what is not zero takes memory."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BLOCK_NUMBERS = 1 << 24
"""Numbers in the largest dense block that is ever made: 64 MB of float32."""


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A matrix [n, width]; row r holds the entries ``start[r]`` to ``start[r + 1]``, columns ascending (int32)."""

    start: Int[Tensor, " n_plus_1"]
    column: Int[Tensor, " entries"]
    value: Float[Tensor, " entries"] | None
    """None: every entry is 1."""
    width: int

    @classmethod
    def from_dense(cls, matrix: Float[Tensor, "n width"]) -> "SparseRows":
        """All that is not zero (NaN is not)."""
        row, column = matrix.nonzero(as_tuple=True)
        return cls(_starts(row, len(matrix)), column.int(), matrix[row, column], matrix.shape[1])

    @classmethod
    def concatenate(cls, parts: Sequence["SparseRows"], width: int) -> "SparseRows":
        """One below the other. ``width`` serves an empty sequence; all parts have values, or none has."""
        if not parts:
            return cls(torch.zeros(1, dtype=torch.long), torch.zeros(0, dtype=torch.int32), torch.zeros(0), width)
        counts = torch.cat([part.counts for part in parts])
        values = [part.value for part in parts if part.value is not None]
        assert len(values) in (0, len(parts)) and all(part.width == width for part in parts)
        column = torch.cat([part.column for part in parts])
        return cls(_starts_of(counts), column, torch.cat(values) if values else None, width)

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, row: int) -> Float[Tensor, " width"]:
        """One row, dense."""
        return self.rows(row, row + 1).dense()[0]

    @property
    def counts(self) -> Int[Tensor, " n"]:
        """Entries in each row."""
        return self.start.diff()

    @property
    def row(self) -> Int[Tensor, " entries"]:
        """The row of each entry."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.start.device), self.counts)

    def rows(self, first: int, last: int) -> "SparseRows":
        """Rows ``first`` to ``last`` (exclusive), without a copy of their entries."""
        begin, end = int(self.start[first]), int(self.start[last])
        value = None if self.value is None else self.value[begin:end]
        return SparseRows(self.start[first : last + 1] - begin, self.column[begin:end], value, self.width)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(first, last) of successive blocks of rows that are no larger than BLOCK_NUMBERS when dense."""
        step = max(1, BLOCK_NUMBERS // max(self.width, 1))
        for first in range(0, len(self), step):
            yield first, min(first + step, len(self))

    def select(self, rows: Int[Tensor, " m"]) -> "SparseRows":
        """The given rows, in that order."""
        counts = self.counts[rows]
        start = _starts_of(counts)
        shift = torch.repeat_interleave(self.start[rows] - start[:-1], counts)
        entry = torch.arange(len(shift), device=shift.device) + shift
        return SparseRows(start, self.column[entry], None if self.value is None else self.value[entry], self.width)

    def keep(self, entries: Bool[Tensor, " entries"]) -> "SparseRows":
        """Only the marked entries."""
        passed = torch.nn.functional.pad(entries.cumsum(0), (1, 0))
        value = None if self.value is None else self.value[entries]
        return SparseRows(passed[self.start], self.column[entries], value, self.width)

    def columns(self, first: int, last: int) -> "SparseRows":
        """Columns ``first`` to ``last`` (exclusive) as a matrix of their own."""
        inside = self.keep((self.column >= first) & (self.column < last))
        return SparseRows(inside.start, inside.column - first, inside.value, last - first)

    def transposed(self) -> "SparseRows":
        """[width, n]: entries by column."""
        order = self.column.argsort(stable=True)
        start = _starts_of(torch.bincount(self.column, minlength=self.width))
        return SparseRows(start, self.row[order].int(), None if self.value is None else self.value[order], len(self))

    def dense(self) -> Float[Tensor, "n width"]:
        """The whole matrix; take `rows` or `columns` first where it is large."""
        matrix = torch.zeros(len(self), self.width, device=self.start.device)
        matrix[self.row, self.column] = torch.ones((), device=matrix.device) if self.value is None else self.value
        return matrix

    def compressed(self) -> Tensor:
        """As a torch CSR tensor, for products with something small."""
        value = torch.ones(len(self.column), device=self.column.device) if self.value is None else self.value
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            return torch.sparse_csr_tensor(
                self.start.int(), self.column, value, size=(len(self), self.width), check_invariants=False
            )

    def weighted_sum(self, weight: Float[Tensor, " n"], *, power: int = 1) -> Float[Tensor, " width"]:
        """Sum of the rows (their entries to the given power) by weight, in float64."""
        assert self.value is not None
        total = torch.zeros(self.width, dtype=torch.float64, device=self.start.device)
        for first, last in self.blocks():
            part = self.rows(first, last)
            assert part.value is not None
            each = part.value.double() ** power * weight[first:last][part.row]
            total += torch.bincount(part.column, weights=each, minlength=self.width)
        return total

    def mean(self) -> Float[Tensor, " width"]:
        """Mean of each column over all rows."""
        return (self.weighted_sum(self._ones()) / max(len(self), 1)).float()

    def variance(self) -> Float[Tensor, " width"]:
        """Variance of each column over all rows (divided by n)."""
        n, ones = max(len(self), 1), self._ones()
        mean = self.weighted_sum(ones) / n
        return (self.weighted_sum(ones, power=2) / n - mean**2).clamp(min=0).float()

    def _ones(self) -> Float[Tensor, " n"]:
        return torch.ones(len(self), dtype=torch.float64, device=self.start.device)

    def to(self, device: torch.device | str) -> "SparseRows":
        """The same on another device."""
        value = None if self.value is None else self.value.to(device)
        return SparseRows(self.start.to(device), self.column.to(device), value, self.width)


def column_percentile(rows: SparseRows, percentile: float) -> Float[Tensor, " width"]:
    """Percentile of each column, zeros included; linear interpolation between order statistics, as numpy.

    Raises ValueError for an entry that is negative or not finite.
    """
    value = rows.value
    assert value is not None
    if not bool((torch.isfinite(value) & (value >= 0)).all()):
        raise ValueError("a density is negative or not finite; densities are shares of tokens, from 0 to 1")
    # The bits of floats that are not negative are ordered as the floats are, so one sort orders (column, value).
    ordered = ((rows.column.long() << 32) | value.view(torch.int32)).sort().values
    counts = torch.bincount(rows.column, minlength=rows.width)
    end, zeros = counts.cumsum(0), len(rows) - counts

    def order_statistic(rank: int) -> Float[Tensor, " width"]:
        if len(ordered) == 0:
            return torch.zeros(rows.width, device=value.device)
        place = (end - counts + rank - zeros).clamp(0, len(ordered) - 1)
        bits = (ordered[place] & 0xFFFFFFFF).int()
        return torch.where(zeros > rank, 0.0, bits.view(torch.float32))

    position = (len(rows) - 1) * percentile / 100
    low = order_statistic(int(position))
    high = order_statistic(min(int(position) + 1, len(rows) - 1))
    # Equal neighbours must give exactly that value, or `>=` fails on ties.
    return low + (position - int(position)) * (high - low)


def _starts(row: Int[Tensor, " entries"], n: int) -> Int[Tensor, " n_plus_1"]:
    return _starts_of(torch.bincount(row, minlength=n))


def _starts_of(counts: Int[Tensor, " n"]) -> Int[Tensor, " n_plus_1"]:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))
