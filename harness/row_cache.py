"""A key-value cache that tells when its rows are reordered, as beam search and shared prefixes do."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

TakeRows = Callable[[Int[Tensor, " row"]], None]


def follow_rows(cache: Any, take: TakeRows) -> None:
    """From now on ``take(index)`` is called whenever row r of ``cache`` becomes what row ``index[r]`` was.

    The cache keeps its identity and type: its class is exchanged for a subclass of it, so that copies still work.
    """
    plain = type(cache)

    class RowCache(plain):
        _plain = plain

        def reorder_cache(self, beam_idx: Tensor) -> Any:
            take(beam_idx)
            return super().reorder_cache(beam_idx)

        def batch_select_indices(self, indices: Tensor) -> Any:
            take(indices)
            return super().batch_select_indices(indices)

        def batch_repeat_interleave(self, repeats: int) -> Any:
            take(torch.arange(len(self.layers[0].keys)).repeat_interleave(repeats))
            return super().batch_repeat_interleave(repeats)

    cache.__class__ = RowCache


def unfollow_rows(cache: Any) -> None:
    """Give the cache its own class back."""
    cache.__class__ = cache._plain
