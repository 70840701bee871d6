"""The largest or smallest entries of rows, the same ones on every device."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_TIED_NUMBERS = 1 << 22  # keys of tied rows made at a time


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
