"""A step's FLOPs, by shape and operator: torch's FlopCounterMode with the formulas that it misses.

FLOPs depend on shapes alone, so each distinct step need be counted only once. Conventions are torch's: a product of
[m, k] and [k, n] is 2 m k n, a causal mask is not deducted.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


def attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Forward of fused attention: scores and weighted sum, 2 products for every query head.

    Shapes: query [batch, heads, q, d], key [batch, kv_heads, k, d], value [batch, kv_heads, k, d_v].
    """
    batch, heads, n_query, d_head = query
    return 2 * batch * heads * n_query * key[2] * (d_head + value[3])


def attention_backward_flops(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Backward of fused attention, 5 products: scores again, gradients of weights, values, queries and keys.

    ``gradient`` has the shape of the output, [batch, heads, q, d_v]; the others as in `attention_flops`.
    """
    batch, heads, n_query, d_head = query
    return 2 * batch * heads * n_query * key[2] * (3 * d_head + 2 * value[3])


def accumulated_product_flops(_total: Shape, left: Shape, right: Shape, *_: Any, **__: Any) -> int:
    """In-place ``total += left @ right``: [m, k] and [k, n], or both with a batch dimension in front.

    torch counts `addmm` and `baddbmm` but not their in-place forms, which TRL's fused LM head uses in its
    backward.
    """
    return 2 * math.prod(left) * right[-1]


def eigendecomposition_flops(matrix: Shape, *_: Any, **__: Any) -> int:
    """Values and vectors of symmetric matrices [.., n, n]: 9 n^3 (Golub and Van Loan, "Matrix Computations", 8.3)."""
    return 9 * math.prod(matrix) * matrix[-1]


def product_flops(left: torch.Tensor, right: torch.Tensor, *_: Any, **__: Any) -> int:
    """``left @ right`` of [m, k] and [k, n]; of a sparse ``left`` only the numbers that it holds are multiplied."""
    sparse = left.layout == torch.sparse_csr
    return 2 * (left.values().numel() if sparse else left.shape[0] * left.shape[1]) * right.shape[1]


product_flops._get_raw = True  # type: ignore[attr-defined]  # torch then gives it the tensors, not their shapes

_aten = torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
    _aten.addmm_: accumulated_product_flops,
    _aten.baddbmm_: accumulated_product_flops,
    _aten._linalg_eigh: eigendecomposition_flops,
}


def signature_of(inputs: Mapping[str, Any], *state: Hashable) -> Hashable:
    """The names and shapes of the tensors in a batch, and whatever else the FLOPs of a step on it depend on.

    Two steps of one stage with equal signatures must execute the same FLOPs. ``state`` must therefore hold
    what changes within the stage: which parameters require gradients (adapter on or off, layers unfrozen
    later), the length of a KV cache, gradient checkpointing switched on or off, and, where a kernel works
    on labelled positions only (TRL's fused LM head), their number. What is fixed for
    the stage need not be in it. FLOPs that depend on values (routing in a mixture of experts) have no
    signature.
    """
    shapes = tuple((name, tuple(t.shape)) for name, t in inputs.items() if isinstance(t, torch.Tensor))
    return (shapes, *state)


@contextmanager
def count_flops() -> Iterator[FlopCounterMode]:
    """Count the FLOPs executed inside, backward included; ask the result for `get_total_flops()`.

    torch's FlopCounterMode plus the operators that it misses: fused attention on CPU, in-place products, symmetric
    eigendecompositions, and products with a sparse matrix, which it takes for a dense one.
    1.4-4.9 times slower than the code alone.
    """
    with FlopCounterMode(display=False, custom_mapping=FORMULAS | {_aten.mm: product_flops}) as counter:
        yield counter


def flops_by_operator(counter: FlopCounterMode) -> dict[str, int]:
    """What ``counter`` counted, by the operator's name as the torch profiler writes it (``aten::mm``); sums to its
    total."""
    counts = counter.get_flop_counts().get("Global", {})
    return {str(operator).replace(".", "::", 1): flops for operator, flops in counts.items()}
