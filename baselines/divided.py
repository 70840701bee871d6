"""Trainings over several processes: each has the same batches, takes its rows of every one, and weighs their loss."""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor

from baselines.rows import IGNORED
from baselines.sharded import Sharded
from harness.compute.ranks import Ranks

SHARE = "share"
"""In a batch: by what the mean over its rows is multiplied, so that the processes' mean is that over all rows."""


class Divided(Sharded):
    """Mixin in front of a trainer: where several processes share its training, accelerate's DDP, or FSDP2 (`Sharded`),
    averages what each has found on its rows.

    All draw the same order and see whole batches, padded as by one process. So the global batches and the FLOPs, summed
    over the processes, are those of one process, and the losses too, but for rounding. Where a loss is no mean over
    rows, the trainer says so by `mean_over`.
    """

    share = 1.0
    """`SHARE` of the batch at hand."""

    def divide(self) -> None:
        """To be called when the trainer is made."""
        trainer: Any = self
        ranks = self.meter.ranks
        if ranks.size == 1:
            return
        trainer.data_collator = _OwnRows(trainer.data_collator, ranks)
        # accelerate's own wants as many rows of each process, and cuts what is gathered of an epoch's last batch.
        trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = self.of_all
        whole = trainer.compute_loss

        def compute_loss(*args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Tensor:
            loss = whole(*args, num_items_in_batch=num_items_in_batch, **kwargs)
            return loss * self.share if num_items_in_batch is None else loss  # divided by the items of all already

        trainer.compute_loss = compute_loss

    def take_share(self, inputs: dict[str, Any]) -> float:
        """Take `SHARE` out of a batch: 1 where all processes have as many rows, 0 where this one has none of its own
        and passes another's along, so that all go in step."""
        self.share = float(inputs.pop(SHARE, 1.0))
        return self.share

    def mean_over(self, mean: Tensor, count: Tensor | int) -> Tensor:
        """``mean`` over ``count`` things in this process's rows, such that what the processes make of it is the mean
        over those of all."""
        ranks = self.meter.ranks
        if ranks.size == 1:
            return mean
        own = int(count) if self.share else 0
        total = sum(ranks.gather(own))
        return mean * (ranks.size * own / total / self.share) if self.share else mean

    def of_all(self, tensor: Tensor, **_: Any) -> Tensor:
        """For the log: the rows (or single numbers) of all processes, without those passed along."""
        return self.meter.ranks.rows(tensor if self.share or tensor.dim() == 0 else tensor[:0])

    def get_train_dataloader(self) -> Any:
        """transformers', without accelerate's division of batches among the processes."""
        loader: Any = super().get_train_dataloader()
        if self.meter.ranks.size > 1:
            shard = loader.batch_sampler
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader


class _OwnRows:
    """A collator that puts all rows together, and keeps those of this process."""

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]], ranks: Ranks) -> None:
        self._collate, self._ranks = collate, ranks

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        n, rank, size = len(rows), self._ranks.rank, self._ranks.size
        # The first have one more: rank 0, whose steps count, has a row of every batch.
        own = list(range(ceil(n * rank / size), ceil(n * (rank + 1) / size)))
        batch = {name: _select(value, own or [0], n) for name, value in self._collate(rows).items()}
        if not own and "labels" in batch:  # which are counted over all processes
            batch["labels"].fill_(IGNORED)
        return {**batch, SHARE: torch.tensor(len(own) * size / n)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collate, name)


def _select(value: Any, rows: list[int], n: int) -> Any:
    """``rows`` of each of the blocks of ``n`` rows that ``value`` has: all chosen answers, then all rejected ones."""
    if isinstance(value, Tensor):
        return value.unflatten(0, (-1, n))[:, rows].flatten(0, 1)
    return [value[row] for row in rows]
