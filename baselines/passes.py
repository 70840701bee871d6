"""What a training through TRL is going to cost: the batches of its trainer, and the passes over each of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from baselines.training import TrainedMethod
from harness.compute.rates import Rate, Rates


@dataclass(frozen=True)
class Pass:
    """FLOPs of one pass over a batch, given the numbers of its rows; texts are padded to the batch's longest."""

    rate: Rate
    """Of the decoder's layers."""
    lengths: Sequence[int]
    """Of each row's (longer) text, in tokens."""
    texts: int = 1
    """In a row."""
    head: int = 0
    """FLOPs of the LM head a position."""
    headless: int = 1
    """Last positions of a text that the LM head leaves out: behind the last token nothing is predicted."""

    def __call__(self, batch: Sequence[int]) -> int:
        size, length = self.texts * len(batch), max(self.lengths[row] for row in batch)
        return self.rate.of(size, length) + self.head * size * (length - self.headless)


def training_flops(
    method: TrainedMethod,
    lengths: Sequence[int],
    *passes: Callable[[list[int]], int],
    batch_size: int | None = None,
    epochs: float | None = None,
) -> int:
    """FLOPs of ``passes`` over every batch of a training on rows of these ``lengths``.

    ``batch_size`` (rows a forward) and ``epochs`` are the method's, unless given.
    """
    batches = trainer_batches(
        lengths,
        batch_size=batch_size or method.batch_size,
        accumulation=method.accumulation,
        epochs=epochs or method.epochs,
    )
    return sum(one(batch) for batch in batches for one in passes)


def trainer_batches(
    lengths: Sequence[int], *, batch_size: int, accumulation: int = 1, epochs: float = 1.0
) -> Iterator[list[int]]:
    """Rows of each forward of a TRL trainer that groups rows by length.

    The trainer's own draw is another one, and so are its batches; their padding is much the same.
    """
    from transformers.trainer_pt_utils import get_length_grouped_indices

    forwards = ceil(len(lengths) / batch_size)
    updates = ceil(epochs * ceil(forwards / accumulation))
    for epoch in range(ceil(epochs)):
        draw = torch.Generator().manual_seed(epoch)
        order = get_length_grouped_indices(list(lengths), batch_size * accumulation, generator=draw)
        steps = min(updates, ceil(forwards / accumulation))
        updates -= steps
        for index in range(min(forwards, steps * accumulation)):
            yield order[index * batch_size : (index + 1) * batch_size]


def body_rate(method: TrainedMethod, rates: Rates) -> Rate:
    """Forward and backward of what ``method`` tunes, without the LM head."""
    return rates.training(method.adapter(), checkpointing=method.gradient_checkpointing)


def head_flops(method: TrainedMethod, rates: Rates, *, fused: bool = True) -> int:
    """FLOPs a position of the LM head in training: its product, the gradient of its input and, tuned, of its weights.

    TRL's ``fused`` one does its product once more in the backward. (On CUDA it does labelled positions only.)
    """
    return rates.head * (2 + (method.tuning == "full") + fused)


def paired_flops(method: TrainedMethod, rows: Sequence[Mapping[str, Any]], rates: Rates) -> int:
    """FLOPs of TRL's CPO and ORPO trainers on `labelled_rows`: both answers in one batch, with a plain LM head."""
    lengths, head = [row["length"] for row in rows], head_flops(method, rates, fused=False)
    return training_flops(method, lengths, Pass(body_rate(method, rates), lengths, texts=2, head=head, headless=0))


def supervised_flops(method: TrainedMethod, rows: Sequence[Mapping[str, Any]], rates: Rates) -> int:
    """FLOPs of TRL's SFT trainer on `answer_rows`: one text a row, with the fused LM head."""
    lengths = [row["length"] for row in rows]
    return training_flops(method, lengths, Pass(body_rate(method, rates), lengths, head=head_flops(method, rates)))
