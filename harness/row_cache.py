"""A key-value cache that tells when its rows are reordered or cut, as beam search and shared prefixes do."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

TakeRows = Callable[[Int[Tensor, " row"]], None]
TakeBack = Callable[[int, int], None]


def follow_rows(cache: Any, take: TakeRows, take_back: TakeBack) -> None:
    """From now on ``take(index)`` is called whenever row r of ``cache`` becomes what row ``index[r]`` was, and
    ``take_back(removed, left)`` whenever its newest tokens are removed.

    The cache keeps its identity and type: its class is exchanged for a subclass of it, so that copies still work;
    what is done to the rows of a copy is not told.
    """
    plain = type(cache)

    class RowCache(plain):
        _plain = plain

        def reorder_cache(self, beam_idx: Tensor) -> Any:
            if self is cache:
                take(beam_idx)
            return super().reorder_cache(beam_idx)

        def batch_select_indices(self, indices: Tensor) -> Any:
            if self is cache:
                take(indices)
            return super().batch_select_indices(indices)

        def batch_repeat_interleave(self, repeats: int) -> Any:
            if self is cache:
                take(torch.arange(len(self.layers[0].keys)).repeat_interleave(repeats))
            return super().batch_repeat_interleave(repeats)

        def crop(self, *args: Any, **kwargs: Any) -> Any:
            before = int(self.get_seq_length())
            result = super().crop(*args, **kwargs)
            left = int(self.get_seq_length())
            if self is cache and left < before:
                take_back(before - left, left)
            return result

    cache.__class__ = RowCache


def unfollow_rows(cache: Any) -> None:
    """Give the cache its own class back."""
    cache.__class__ = cache._plain
