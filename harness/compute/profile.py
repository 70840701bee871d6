"""Operator breakdown of one step through the torch profiler."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from harness.compute.bill import OperatorRow
from harness.compute.operators import PROFILER_FORMULAS


class OperatorProfile:
    """Profiles single steps and keeps their rows, not their events (which grow to gigabytes over a run).

    ``overhead`` is the time in seconds spent on starting, stopping and reading the profiler, outside the
    profiled steps; the first start in a process loads the profiler's library, about a second.
    """

    def __init__(self) -> None:
        self.rows: list[OperatorRow] = []
        self.overhead = 0.0

    @contextmanager
    def sample(self, stage: str) -> Iterator[None]:
        """Profile what runs inside and append its rows to ``rows``; no rows when it raises."""
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
            self.rows += _rows(stage, profiler.key_averages(group_by_input_shape=True))
        finally:
            self.overhead += time.perf_counter() - begin - step_seconds


def _rows(stage: str, averages: Iterable[FunctionEventAvg]) -> list[OperatorRow]:
    """One row an operator, most FLOPs first, then most time."""
    totals: dict[str, tuple[int, int, float]] = {}
    for event in averages:
        if event.device_type != DeviceType.CPU:
            continue  # a device kernel: its time is also in the operator that launched it
        operator = str(event.key)
        calls, flops, seconds = totals.get(operator, (0, 0, 0.0))
        totals[operator] = (calls + event.count, flops + _flops(event), seconds + _seconds(event))
    rows = [
        OperatorRow(stage=stage, operator=operator, calls=calls, flops=flops, seconds=seconds)
        for operator, (calls, flops, seconds) in totals.items()
    ]
    return sorted(rows, key=lambda row: (-row.flops, -row.seconds, row.operator))


def _flops(event: FunctionEventAvg) -> int:
    if event.key in PROFILER_FORMULAS:
        shapes: Any = event.input_shapes
        return event.count * PROFILER_FORMULAS[event.key](*shapes)
    return event.flops


def _seconds(event: FunctionEventAvg) -> float:
    return (event.self_device_time_total or event.self_cpu_time_total) / 1e6
