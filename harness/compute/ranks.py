"""The processes that share one fit: how many there are, which one this is, and what they tell each other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process is number ``rank`` of ``size``; rank 0 alone writes files. ``sharded``: each keeps but a part of the
    weights that are trained.

    All of them must come by each call, in the same order; more than one need torch's process group, with a backend for
    the CPU in it.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    def gather(self, mine: T) -> list[T]:
        """What each has given, by rank; it is pickled, tensors had better be on the CPU."""
        if self.size == 1:
            return [mine]
        everybodys: list[Any] = [None] * self.size
        dist.all_gather_object(everybodys, mine)
        return everybodys

    def first(self, mine: T) -> T:
        """What rank 0 has given."""
        return self.gather(mine)[0]

    def collect(self, mine: Sequence[T]) -> list[T]:
        """What all have made of a sequence that was dealt out one by one (`Meter.shared`), in its order."""
        parts = self.gather(list(mine))
        return [part[turn] for turn in range(max(map(len, parts))) for part in parts if turn < len(part)]

    def rows(self, tensor: Tensor) -> Tensor:
        """The rows of all, however many each has, without gradients; numbers are put together to one row."""
        parts = self.gather(tensor.detach().cpu())
        return torch.cat([part.reshape(1) if part.dim() == 0 else part for part in parts]).to(tensor.device)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over the processes into each tensor."""
        for tensor in tensors if self.size > 1 else ():
            dist.all_reduce(tensor)
            tensor /= self.size


ALONE = Ranks()
