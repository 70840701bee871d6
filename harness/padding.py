"""Sequences of different length -> one padded batch with its mask and positions."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor


def pad_rows(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    *,
    side: Literal["left", "right"],
    device: torch.device | str = "cpu",
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
