"""Sequences of different length -> one padded batch with its mask and positions."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
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


def new_token_mask(mask: Any, ids: Tensor) -> Bool[Tensor, "batch pos"]:
    """Which of this forward's tokens are not padding, from a [batch, past + pos] mask or none."""
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise ValueError(
            "steering needs a [batch, pos] attention mask (prepared 4-D masks hide which tokens are padding)"
        )
    return mask[:, -ids.shape[1] :].bool()


def cut_batches(lengths: Sequence[int], batch_size: int, *, forward: int) -> list[range]:
    """Rows of these lengths, longest first, cut into batches of at most ``batch_size`` so that least is computed.

    A batch costs its rows times its longest row, and ``forward`` for being a forward of its own (in tokens).
    """
    assert all(a >= b for a, b in itertools.pairwise(lengths))
    cost, start = [0], [0]
    for stop in range(1, len(lengths) + 1):
        cheapest = min(
            (cost[begin] + (stop - begin) * lengths[begin] + forward, begin)
            for begin in range(max(0, stop - batch_size), stop)
        )
        cost.append(cheapest[0])
        start.append(cheapest[1])
    batches = []
    stop = len(lengths)
    while stop:
        batches.append(range(start[stop], stop))
        stop = start[stop]
    return batches[::-1]
