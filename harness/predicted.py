"""What methods predict their bills with: the passes they make over triples, priced by an architecture's rates."""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import torch

from harness.compute.rates import Rates
from harness.residuals import TripleIds, batches_by_length


def residual_flops(encoded: Sequence[TripleIds], *, last_layer: int, rates: Rates, batch_size: int) -> int:
    """FLOPs of `harness.residuals.triple_residuals` over all triples, for layers up to ``last_layer``."""
    body, total = rates.body(last_layer + 1), 0
    for rows in batches_by_length(encoded, batch_size):
        prompt = max(len(encoded[r].prompt) for r in rows)
        answer = max(max(len(encoded[r].chosen), len(encoded[r].rejected)) for r in rows)
        total += body.of(len(rows), prompt) + body.of(2 * len(rows), answer, past=prompt)
    return total


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


def lora_config(method: Any) -> Any:
    """PEFT's configuration for the ``lora_*`` options of a trained method; None where it tunes all weights."""
    if method.tuning == "full":
        return None
    from peft import LoraConfig

    return LoraConfig(r=method.lora_rank, target_modules=method.lora_targets, task_type="CAUSAL_LM")


def fused_head_flops(rates: Rates, *, full: bool) -> int:
    """FLOPs a position of TRL's fused LM head in training: it does its forward product once more in the backward.

    Then come the gradient of its input and, in ``full`` training, that of its weights. (On CUDA it does labelled
    positions only.)
    """
    return rates.head * (4 if full else 3)
