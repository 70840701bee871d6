"""Sequences of different length -> one padded batch with its mask and positions."""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, *, side: Literal["left", "right"], device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
    """(ids, attention mask), padded on one side to the longest row."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, place] = torch.tensor(list(row), dtype=torch.long)
        mask[index, place] = 1
    return ids.to(device), mask.to(device)


def positions_of(mask: Int[Tensor, "row pos"]) -> Int[Tensor, "row pos"]:
    """Position of each token among the unpadded ones of its row (0 in front of the first)."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def cut_batches(lengths: Sequence[int], batch_size: int, *, forward: int) -> list[range]:
    """Rows of these lengths, longest first, cut into batches of at most ``batch_size`` so that least is computed.

    A batch costs its rows times its longest row, and ``forward`` for being a forward of its own (in tokens).
    """
    assert all(a >= b for a, b in itertools.pairwise(lengths))
    best = [(0, 0)]  # for each number of first rows: their cost, and where their last batch begins
    for stop in range(1, len(lengths) + 1):
        begins = range(max(0, stop - batch_size), stop)
        best.append(min((best[begin][0] + (stop - begin) * lengths[begin] + forward, begin) for begin in begins))
    batches, stop = [], len(lengths)
    while stop:
        batches.append(range(best[stop][1], stop))
        stop = best[stop][1]
    return batches[::-1]
