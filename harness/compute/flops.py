"""A step's FLOPs, by shape, and its operators: torch's two counters with the formulas that they miss.

FLOPs depend on shapes alone, so each distinct step need be counted only once. One table of formulas serves both
counters: `FlopCounterMode` (as its custom mapping) and the profiler rows (by operator name). Conventions are torch's: a
product of [m, k] and [k, n] is 2 m k n, a causal mask is not deducted.
"""

import math
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from harness.compute.bill import OperatorRow

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

# The profiler knows no attention at all, so its rows need the other devices' fused kernels too.
PROFILER_FORMULAS: dict[str, Callable[..., int]] = {
    f"aten::{packet.__name__}": formula for packet, formula in FORMULAS.items()
} | {
    f"aten::_scaled_dot_product_{kernel}_attention{suffix}": formula
    for kernel in ("flash", "efficient", "cudnn")
    for suffix, formula in (("", attention_flops), ("_backward", attention_backward_flops))
}


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

    torch's FlopCounterMode plus the operators that it misses: fused attention on CPU, in-place products, symmetric
    eigendecompositions, and products with a sparse matrix, which it takes for a dense one.
    1.4-4.9 times slower than the code alone.
    """
    with FlopCounterMode(display=False, custom_mapping=FORMULAS | {_aten.mm: product_flops}) as counter:
        yield counter


_MODE = "PythonDispatchMode"
"""The event of a step that is being counted (see `count_flops`): the operator stands outside and again inside."""


class OperatorProfile:
    """Profiles single steps, one a stage, and keeps their rows, not their events (gigabytes over a run).

    ``overhead`` is the time in seconds spent on starting, stopping and reading the profiler, outside the
    profiled steps; the first start in a process loads the profiler's library, about a second.
    """

    def __init__(self) -> None:
        self._stages: dict[str, list[OperatorRow]] = {}
        self.overhead = 0.0

    @property
    def rows(self) -> list[OperatorRow]:
        return [row for rows in self._stages.values() for row in rows]

    @contextmanager
    def sample(self, stage: str) -> Iterator[None]:
        """Profile what runs inside; its rows take the place of the stage's earlier ones, unless it raises."""
        # Below level 6 the profiler's library prints to stderr at every start and stop.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_initialized():
            activities.append(ProfilerActivity.CUDA)
        begin = time.perf_counter()
        step_seconds = 0.0
        try:
            with profile(activities=activities, with_flops=True, record_shapes=True) as profiler:
                start = time.perf_counter()
                try:
                    yield
                finally:
                    step_seconds = time.perf_counter() - start
            self._stages[stage] = _rows(stage, profiler.events() or ())
        finally:
            self.overhead += time.perf_counter() - begin - step_seconds


def _rows(stage: str, events: Iterable[FunctionEvent]) -> list[OperatorRow]:
    """One row an operator, most FLOPs first, then most time."""
    events = [event for event in events if event.device_type == DeviceType.CPU]  # a kernel's time is in its operator
    twice = {id(outer) for event in events if (outer := _counted_by_mode(event)) is not None}
    totals: dict[str, tuple[int, int, float]] = {}
    for event in events:
        if event.name == _MODE or id(event) in twice:
            continue
        formula, shapes = PROFILER_FORMULAS.get(event.name), cast(Any, event.input_shapes)
        counted = formula(*shapes) if formula is not None else event.flops or 0
        microseconds = event.self_device_time_total or event.self_cpu_time_total
        calls, flops, seconds = totals.get(event.name, (0, 0, 0.0))
        totals[event.name] = (calls + 1, flops + counted, seconds + microseconds / 1e6)
    rows = [
        OperatorRow(stage=stage, operator=operator, calls=calls, flops=flops, seconds=seconds)
        for operator, (calls, flops, seconds) in totals.items()
    ]
    return sorted(rows, key=lambda row: (-row.flops, -row.seconds, row.operator))


def _counted_by_mode(event: FunctionEvent) -> FunctionEvent | None:
    """The outer one of an operator's two events in a step that is being counted; None for all others."""
    mode: Any = event.cpu_parent
    outer = mode.cpu_parent if mode is not None and mode.name == _MODE else None
    return outer if outer is not None and outer.name == event.name else None
