"""Sparse rows in little space, to the bit: columns as bits, values as a code book of each row."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dspa.map.sparse import SparseRows

_ESCAPE = 255  # this code stands for "the next of the wide codes"


def pack(rows: SparseRows) -> dict[str, Tensor]:
    """Tensors for safetensors; `unpack` gives exactly the same rows back, whatever the floats are.

    ``length`` [n]: entries of each row. ``bits`` [n, width / 8], or ``column`` [entries] where plain numbers are
    smaller. A difference of shares takes few values in a row: ``book`` holds each row's distinct values, the most
    frequent first, ``book_length`` [n] their number, ``code`` one byte an entry and ``wide`` (two bytes) the codes from
    255 on.
    Where that does not pay, ``value`` holds the values themselves.
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
    start = torch.nn.functional.pad(length.cumsum(0), (1, 0))
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
    if "book" in packed:
        value = _decode(packed, row, n)
    elif "value" in packed:
        value = _tensor(packed, "value", torch.float32)
    else:
        return rows
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
    step = max(1, (1 << 24) // max(width, 1))
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
