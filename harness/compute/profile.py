"""What the steps of a fit executed, by operator: FLOPs from the counter, calls and seconds from torch-profiler samples.

The profiler has formulas for few operators (none for fused attention or in-place products) and keeps every event, so it
sees single steps only; the FLOPs of an operator are the counter's, over all steps.
"""

import gc
import os
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import _filter_name
from torch.profiler import ProfilerActivity, profile, record_function

from harness.compute.bill import OperatorRow
from harness.compute.trace import Trace

_MODE = "PythonDispatchMode"
"""The event of a step that is being counted (see `count_flops`): the operator stands outside and again inside."""


class Measured(NamedTuple):
    """One operator in one profiled step: ``flops`` by the profiler's own formulas (0 where it has none), ``seconds``
    its own time, on the device where it ran there, else on the host."""

    calls: int
    flops: int
    seconds: float


@dataclass
class Sample:
    """One profiled step; ``operators`` are there when it is over. ``rank``: 3 for a step that is not being counted, 2
    for one that is, 1 for a kind's first step, which also loads and allocates what later ones find ready."""

    rank: int
    operators: dict[str, Measured] = field(default_factory=dict)


class Tally:
    """All steps of one kind in one stage: how many, their FLOPs by operator, and the best step that was sampled."""

    def __init__(self) -> None:
        self.steps = 0
        self.flops: Counter[str] = Counter()
        self.sample: Sample | None = None
        self._sample_flops = 0

    def wanted(self, *, counted: bool) -> Sample | None:
        """Where to keep a profile of the next step, which is being ``counted`` or not; None when the one there is as
        good. So a kind of step is profiled once if it comes once, and three times at most."""
        rank = 3 if not counted else 2 if self.steps else 1
        return Sample(rank) if self.sample is None or rank > self.sample.rank else None

    def add(self, flops: Mapping[str, int], sample: Sample | None, *, steps: int = 1) -> None:
        """One more step (or, with ``steps`` 0, more of one), with its FLOPs by operator, and its profile if any."""
        self.steps += steps
        self.flops.update(flops)
        if sample is not None:
            self.sample, self._sample_flops = sample, sum(flops.values())

    def state(self) -> dict[str, Any]:
        """All of it, in plain Python types."""
        sample = self.sample and [self.sample.rank, {name: tuple(one) for name, one in self.sample.operators.items()}]
        return {"steps": self.steps, "flops": dict(self.flops), "sample": sample, "sample_flops": self._sample_flops}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Tally":
        """The tally whose `state` this is."""
        tally = cls()
        tally.steps, tally.flops, tally._sample_flops = state["steps"], Counter(state["flops"]), state["sample_flops"]
        if state["sample"] is not None:
            rank, operators = state["sample"]
            tally.sample = Sample(rank, {name: Measured(*one) for name, one in operators.items()})
        return tally

    def rows(self, stage: str, step: str) -> list[OperatorRow]:
        """One row an operator, most FLOPs first, then most time; none without a sample.

        FLOPs are the sum over all steps; calls are the sample's times the number of steps; seconds and the profiler's
        own FLOPs are the sample's times the ratio of all steps' FLOPs to its own (of their numbers, where it has none).
        """
        if self.sample is None:
            return []
        found, unseen = self.sample.operators, Measured(0, 0, 0.0)
        scale = self.flops.total() / self._sample_flops if self._sample_flops else self.steps
        rows = [
            OperatorRow(
                stage=stage,
                step=step,
                steps=self.steps,
                operator=operator,
                flops=self.flops[operator],
                calls=measured.calls * self.steps,
                profiler_flops=round(measured.flops * scale),
                seconds=measured.seconds * scale,
            )
            for operator, measured in (dict.fromkeys(self.flops, unseen) | found).items()
        ]
        return sorted(rows, key=lambda row: (-row.flops, -row.seconds, row.operator))


class Profiler:
    """Profiles single steps and keeps what they add up to, not their events (gigabytes over a run).

    ``overhead`` is the time in seconds spent on starting, stopping and reading the torch profiler, outside the profiled
    steps; the first start in a process loads the profiler's library, about a second. With a ``trace`` the events go
    there.
    """

    def __init__(self, trace: Trace | None = None) -> None:
        self.overhead = 0.0
        self._trace = trace

    @contextmanager
    def sampling(self, sample: Sample, name: str) -> Iterator[None]:
        """Profile what runs inside into ``sample``; ``name`` is its heading in the trace. Nothing is kept if it
        raises."""
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
                    with record_function(name if sample.rank == 3 else f"{name} (while FLOPs are counted)"):
                        yield
                finally:
                    step_seconds = time.perf_counter() - start
            with _no_collection():
                inner = profiler.profiler
                assert inner is not None
                sample.operators = by_operator(inner.kineto_results)
            if self._trace is not None:
                self._trace.keep(name, profiler)
        finally:
            self.overhead += time.perf_counter() - begin - step_seconds


def step_name(signature: Hashable, kind: str) -> str:
    """The kind of a step: the word that its signature begins with (encode, map, ...), or else "train" or "forward"."""
    first = signature[0] if isinstance(signature, tuple) and signature else None
    return first if isinstance(first, str) else kind


@dataclass(slots=True)
class _Event:
    """What is needed of one event, which ran on the host from ``start`` to ``end`` (nanoseconds) in one thread.

    ``own`` is its time without that of the events within it, ``device`` that of its kernels; ``inside`` is how many
    events are directly within it, ``outer`` the one that it is within."""

    name: str
    thread: int
    start: int
    end: int
    flops: int
    annotation: bool
    own: int = 0
    device: int = 0
    inside: int = 0
    outer: "_Event | None" = None


def by_operator(result: Any) -> dict[str, Measured]:
    """The events of a profile, a ``_ProfilerResult`` of torch, added up by operator; annotations and the counter's own
    events are left out.

    As `torch.profiler.profile.events` has them, which builds a large object for each: gigabytes for a training step.
    """
    events = _nested(result)
    _merge_repeated(events)
    twice = {id(outer) for event in events if (outer := _counted_by_mode(event)) is not None}
    totals: dict[str, Measured] = {}
    for event in events:
        if event.annotation or event.name == _MODE or id(event) in twice:
            continue
        calls, flops, seconds = totals.get(event.name, (0, 0, 0.0))
        totals[event.name] = Measured(calls + 1, flops + event.flops, seconds + (event.device or event.own) / 1e9)
    return totals


def _nested(result: Any) -> list[_Event]:
    """The host's events in the order of their beginning, those of each thread within each other."""
    events: list[_Event] = []
    launched: dict[int, _Event] = {}
    kernels: list[tuple[int, int]] = []
    for raw in result.events():
        if raw.device_type() != DeviceType.CPU:
            kernels.append((raw.linked_correlation_id(), raw.end_ns() - raw.start_ns()))
        elif not _filter_name(raw.name()) and not raw.is_hidden_event():
            thread, start, end = raw.start_thread_id(), raw.start_ns(), raw.end_ns()
            event = _Event(raw.name(), thread, start, end, raw.flops(), raw.is_user_annotation())
            events.append(event)
            if raw.is_async() or raw.end_thread_id() != thread:
                event.end = event.start  # nothing is within it, and its time is that of others
            elif raw.linked_correlation_id() == 0:
                launched[raw.correlation_id()] = event
    for correlation, duration in kernels:
        if correlation in launched:
            launched[correlation].device += duration
    events.sort(key=lambda event: (event.thread, event.start, -event.end))
    around: list[_Event] = []
    for event in events:
        while around and (around[-1].thread != event.thread or around[-1].end < event.end):
            around.pop()
        event.own += event.end - event.start
        if around:
            event.outer = around[-1]
            around[-1].own -= event.end - event.start
            around[-1].inside += 1
        around.append(event)
    return events


def _merge_repeated(events: list[_Event]) -> None:
    """An event with nothing in it but one of the same name is one event: an operator that was dispatched twice."""
    gone = set()
    for event in reversed(events):  # from within outwards
        outer = event.outer
        if outer is not None and outer.name == event.name and outer.inside == 1:
            outer.own, outer.device, outer.inside = outer.own + event.own, outer.device + event.device, event.inside
            gone.add(id(event))
    for event in events:
        while event.outer is not None and id(event.outer) in gone:
            event.outer = event.outer.outer
    events[:] = [event for event in events if id(event) not in gone]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of events are made at once, and the garbage collector, which looks at all objects of the process again
    and again meanwhile, would take most of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _counted_by_mode(event: _Event) -> _Event | None:
    """The outer one of an operator's two events in a step that is being counted; None for all others."""
    mode = event.outer
    outer = mode.outer if mode is not None and mode.name == _MODE else None
    return outer if outer is not None and outer.name == event.name else None
