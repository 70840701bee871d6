"""FLOPs by shape: a step's FLOPs depend on shapes alone, so each distinct step need be counted only once."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.compute.operators import FORMULAS


def signature_of(inputs: Mapping[str, Any], *state: Hashable) -> Hashable:
    """The names and shapes of the tensors in a batch, and whatever else the FLOPs of a step on it depend on.

    Two steps of one stage with equal signatures must execute the same FLOPs. ``state`` must therefore hold
    what changes within the stage: which parameters require gradients (adapter on or off, layers unfrozen
    later), the length of a KV cache, gradient checkpointing switched on or off, and, where a kernel works
    on labelled positions only (TRL's fused LM head on CUDA, not on CPU), their number. What is fixed for
    the stage need not be in it. FLOPs that depend on values (routing in a mixture of experts) have no
    signature.
    """
    shapes = tuple((name, tuple(t.shape)) for name, t in inputs.items() if isinstance(t, torch.Tensor))
    return (shapes, *state)


@contextmanager
def count_flops() -> Iterator[FlopCounterMode]:
    """Count the FLOPs executed inside, backward included; ask the result for `get_total_flops()`.

    torch's FlopCounterMode plus the operators it misses (see `harness.compute.operators`): fused attention
    on CPU and in-place products. 1.4-4.9 times slower than the code alone.
    """
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        yield counter
