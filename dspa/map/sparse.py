"""Sparse rows: densities and differences of triples, gates of latents. Only what is not zero takes memory.

`pack` brings them into little space on disk, to the bit: columns as bits, values as a code book of each row.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BLOCK_NUMBERS = 1 << 24
"""Numbers in the largest dense block that is ever made: 64 MB of float32."""
_ESCAPE = 255  # this code stands for "the next of the wide codes"
_Same = TypeVar("_Same")


class OnDevice:
    """A frozen dataclass of tensors (and of parts that are such) on one device."""

    def to(self: _Same, device: torch.device | str) -> _Same:
        """The same on another device."""
        whole: Any = self
        parts = {field.name: getattr(self, field.name) for field in fields(whole)}
        moved = {name: part.to(device) for name, part in parts.items() if isinstance(part, Tensor | OnDevice)}
        return replace(whole, **moved)


@dataclass(frozen=True, eq=False)
class SparseRows(OnDevice):
    """A matrix [n, width]; row r holds the entries ``start[r]`` to ``start[r + 1]``, columns ascending (int32)."""

    start: Int[Tensor, " n_plus_1"]
    column: Int[Tensor, " entries"]
    value: Float[Tensor, " entries"] | None
    """None: every entry is 1."""
    width: int

    def __repr__(self) -> str:
        return f"<SparseRows: {len(self.start) - 1} x {self.width}, {len(self.column)} entries>"

    @classmethod
    def from_dense(cls, matrix: Float[Tensor, "n width"]) -> "SparseRows":
        """All that is not zero (NaN is not)."""
        row, column = matrix.nonzero(as_tuple=True)
        return cls(
            _starts_of(torch.bincount(row, minlength=len(matrix))), column.int(), matrix[row, column], matrix.shape[1]
        )

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

    def weighted_sum(self, weight: Float[Tensor, " n"] | None = None) -> Float[Tensor, " width"]:
        """Sum of the rows by weight (None: 1), in float64."""
        assert self.value is not None
        total = torch.zeros(self.width, dtype=torch.float64, device=self.start.device)
        for first, last in self.blocks():
            part = self.rows(first, last)
            assert part.value is not None
            each = part.value.double()
            if weight is not None:
                each = each * weight[first:last][part.row]
            total += torch.bincount(part.column, weights=each, minlength=self.width)
        return total

    def mean(self) -> Float[Tensor, " width"]:
        """Mean of each column over all rows."""
        return (self.weighted_sum() / max(len(self), 1)).float()


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


def _starts_of(counts: Int[Tensor, " n"]) -> Int[Tensor, " n_plus_1"]:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def pack(rows: SparseRows) -> dict[str, Tensor]:
    """Tensors for safetensors; `unpack` gives exactly the same rows back, whatever the floats are.

    ``length`` [n]: entries of each row. ``bits`` [n, width / 8], or ``column`` [entries] where plain numbers are
    smaller. A difference of shares takes few values in a row: ``book`` holds each row's distinct values, the most
    frequent first, ``book_length`` [n] their number, ``code`` one byte an entry and ``wide`` (two bytes) the codes from
    255 on. Where that does not pay, ``value`` holds the values themselves.
    """
    rows = rows.to("cpu")
    packed = {"length": rows.counts.int()}
    number = _column_type(rows.width)
    if len(rows) * _row_bytes(rows.width) < len(rows.column) * number.itemsize:
        packed["bits"] = torch.cat([_bits(rows.rows(*block)) for block in rows.blocks()])
    else:
        packed["column"] = rows.column.to(number)
    if rows.value is not None:
        packed |= _pack_values(rows)
    return packed


def unpack(packed: Mapping[str, Tensor], n: int, width: int) -> SparseRows:
    """Inverse of `pack` for rows of n x width; raises ValueError, saying what is wrong, for anything else."""
    length = _tensor(packed, "length", torch.int32).long()
    if len(length) != n or bool((length < 0).any()):
        raise ValueError(f"'length' must hold {n} counts, found {len(length)}")
    start = _starts_of(length)
    total = int(start[-1])
    if "bits" in packed:
        column = _columns_of_bits(_tensor(packed, "bits", torch.uint8), n, width)
    else:
        column = _tensor(packed, "column", _column_type(width)).int()
    if len(column) != total:
        raise ValueError(f"'length' says {total} entries, but there are {len(column)} columns")
    rows = SparseRows(start, column, None, width)
    row = rows.row
    descends = (column.diff() <= 0) & (row.diff() == 0)
    if bool(((column < 0) | (column >= width)).any()) or bool(descends.any()):
        raise ValueError(f"columns must ascend within each row and lie in 0..{width - 1}")
    if "book" not in packed and "value" not in packed:
        return rows
    value = _decode(packed, row, n) if "book" in packed else _tensor(packed, "value", torch.float32)
    if len(value) != total:
        raise ValueError(f"'length' says {total} entries, but there are {len(value)} values")
    return SparseRows(start, column, value, width)


def _tensor(packed: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    if name not in packed:
        raise ValueError(f"tensor {name!r} is missing")
    tensor = packed[name].cpu()
    if tensor.dtype != dtype:
        raise ValueError(f"tensor {name!r} is {tensor.dtype}, expected {dtype}")
    return tensor


def _column_type(width: int) -> torch.dtype:
    return torch.uint16 if width <= 1 << 16 else torch.int32


def _row_bytes(width: int) -> int:
    return (width + 7) // 8


def _bits(rows: SparseRows) -> Tensor:
    present = np.zeros((len(rows), rows.width), dtype=bool)
    present[rows.row.numpy(), rows.column.numpy()] = True
    return torch.from_numpy(np.packbits(present, axis=1))


def _columns_of_bits(bits: Tensor, n: int, width: int) -> Tensor:
    if tuple(bits.shape) != (n, _row_bytes(width)):
        raise ValueError(f"'bits' has shape {tuple(bits.shape)}, expected {(n, _row_bytes(width))}")
    step = max(1, BLOCK_NUMBERS // max(width, 1))
    found = [np.zeros(0, dtype=np.int32)]
    for first in range(0, n, step):
        present = np.unpackbits(bits[first : first + step].numpy(), axis=1)
        found.append(present.nonzero()[1].astype(np.int32))
    return torch.from_numpy(np.concatenate(found))


def _pack_values(rows: SparseRows) -> dict[str, Tensor]:
    assert rows.value is not None
    coded = [_code(rows.rows(*block)) for block in rows.blocks()]
    if not coded:
        return {"value": rows.value}
    book, book_length, code = (torch.from_numpy(np.concatenate(part)) for part in zip(*coded, strict=True))
    wide = code[code >= _ESCAPE]
    size = 4 * (len(book) + len(rows)) + len(code) + 2 * len(wide)
    if size >= rows.value.nbytes or bool((wide >= 1 << 16).any()):
        return {"value": rows.value}
    narrow = code.clamp(max=_ESCAPE).to(torch.uint8)
    return {"book": book.view(torch.float32), "book_length": book_length, "code": narrow, "wide": wide.to(torch.uint16)}


def _code(rows: SparseRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(book as bits int32, its length per row int32, code of each entry int32)."""
    assert rows.value is not None
    # Values are told apart by their bits: -0.0 and NaN must come back as they were.
    bits = rows.value.view(torch.int32).numpy()
    key = (rows.row.numpy() << 32) | (bits.astype(np.int64) & 0xFFFFFFFF)
    distinct, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
    row = distinct >> 32
    order = np.lexsort((distinct, -count, row))
    book_length = np.bincount(row, minlength=len(rows))
    begin = book_length.cumsum() - book_length
    code = np.empty(len(distinct), dtype=np.int32)
    code[order] = np.arange(len(distinct)) - begin[row]  # rows come in order, so row[order] is row
    book = (distinct[order] & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    return book, book_length.astype(np.int32), code[inverse]


def _decode(packed: Mapping[str, Tensor], row: Tensor, n: int) -> Tensor:
    book = _tensor(packed, "book", torch.float32)
    length = _tensor(packed, "book_length", torch.int32).long()
    code = _tensor(packed, "code", torch.uint8).int()
    wide = _tensor(packed, "wide", torch.uint16).int()
    if len(code) != len(row) or len(length) != n or bool((length < 0).any()) or int(length.sum()) != len(book):
        raise ValueError("'book_length', 'book' and 'code' do not belong together")
    escaped = code == _ESCAPE
    if int(escaped.sum()) != len(wide):
        raise ValueError(f"{int(escaped.sum())} entries have a wide code, but 'wide' holds {len(wide)}")
    code[escaped] = wide
    if bool(((code < 0) | (code >= length[row])).any()):
        raise ValueError("a code lies outside its row's book")
    return book[(length.cumsum(0) - length)[row] + code]
