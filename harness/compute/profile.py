"""Operator breakdown of one step through the torch profiler."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from harness.compute.bill import OperatorRow
from harness.compute.shapes import PROFILER_FORMULAS

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
        calls, flops, seconds = totals.get(event.name, (0, 0, 0.0))
        totals[event.name] = (calls + 1, flops + _flops(event), seconds + _seconds(event))
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


def _flops(event: FunctionEvent) -> int:
    if event.name in PROFILER_FORMULAS:
        shapes: Any = event.input_shapes
        return PROFILER_FORMULAS[event.name](*shapes)
    return event.flops or 0


def _seconds(event: FunctionEvent) -> float:
    return (event.self_device_time_total or event.self_cpu_time_total) / 1e6
