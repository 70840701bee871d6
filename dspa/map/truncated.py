"""The map as it ships: only the ends of each row ("99.8 % less memory", arXiv 2603.21461, "Offline", step 4)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_TIED_NUMBERS = 1 << 22  # keys of tied rows made at a time


@dataclass(frozen=True, eq=False)
class TruncatedMap:
    """A with at most 2 * top entries a row. Unused places hold column 0 and value 0."""

    columns: Int[Tensor, "d_in entries"]
    """int32"""
    values: Float[Tensor, "d_in entries"]
    d_out: int

    def scores(
        self, selected: Int[Tensor, "batch k"], weights: Float[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch d_out"]:
        """s(x) = A^T 1_S over the kept entries, or the sum of rows by ``weights``; -1 in ``selected``: none."""
        present = (selected >= 0).float()
        weights = present if weights is None else weights * present
        rows = selected.clamp(min=0)
        # In float64, so that ties stay ties whatever the order of addition, which an accelerator does not promise.
        columns = self.columns[rows].flatten(1).long()
        values = (self.values[rows].double() * weights[..., None]).flatten(1)
        scores = torch.zeros(len(selected), self.d_out, dtype=torch.float64, device=values.device)
        return scores.scatter_add_(1, columns, values).float()

    def to(self, device: torch.device | str) -> "TruncatedMap":
        """The same on another device."""
        return TruncatedMap(self.columns.to(device), self.values.to(device), self.d_out)


def row_extremes(
    block: Float[Tensor, "row d_out"], top: int
) -> tuple[Int[Tensor, "row entries"], Float[Tensor, "row entries"]]:
    """Columns (int32) and values of the ``top`` largest and smallest entries of each row, ties to the lower column.

    Zeros are not kept, and an entry that is among both ends is kept once.
    """
    column = torch.cat([extreme_columns(block, top, largest=largest) for largest in (True, False)], dim=1)
    ordered = column.sort(dim=1).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    value = block.gather(1, ordered).masked_fill(repeated, 0.0)
    return ordered.masked_fill(value == 0, 0).int(), value


def extreme_columns(values: Float[Tensor, "row width"], k: int, *, largest: bool = True) -> Int[Tensor, "row kept"]:
    """Columns of the ``k`` (at most width) largest or smallest entries of each row, most extreme first.

    Of entries that tie at the cut-off those in lower columns are taken, except for zeros, which no caller keeps.
    Densities and their differences are shares of few tokens, so ties are common; `topk` alone takes any of them.
    """
    k = min(k, values.shape[1])
    value, column = values.topk(min(k + 1, values.shape[1]), dim=1, largest=largest)
    tied = ((value[:, k:] == value[:, k - 1 : k]).any(1) & (value[:, k - 1] != 0)).nonzero()[:, 0]
    column = column[:, :k]
    for rows in tied.split(max(1, _TIED_NUMBERS // values.shape[1])):
        bits = values[rows].view(torch.int32).long()
        key = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
        place = torch.arange(values.shape[1], device=values.device)
        column[rows] = (((key if largest else -key) << 32) - place).topk(k, dim=1).indices
    return column
