"""Is one way of computing something faster than another? Ratios of times from one interleaved run.

On a shared machine seconds drift by more than the differences of interest. So every candidate runs once in every
round, in an order drawn anew, and only times of the same round are compared: the median over rounds of the ratio,
with a bootstrap interval over rounds. The reference runs twice (the A/A control): how far its ratio to itself is
from 1 is what this run cannot tell from nothing.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

Work = Callable[[], object]
Candidate = Callable[[], AbstractContextManager[Work]]
"""Opens what it needs (not timed) and gives the work of one round (timed); closing is not timed either."""

Verdict = Literal["met", "not met", "within noise"]
REPLICATES = 2000


def always(work: Work) -> Candidate:
    """A candidate that needs nothing opened."""
    return lambda: nullcontext(work)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the other side (1: equally fast); median over rounds with its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Goal:
    """What a ratio should be at least."""

    at_least: float

    def verdict(self, ratio: Ratio) -> Verdict:
        """``within noise`` when the interval holds the goal."""
        if ratio.low >= self.at_least:
            return "met"
        return "not met" if ratio.high < self.at_least else "within noise"


@dataclass(frozen=True)
class Comparison:
    """Seconds of every candidate in every round; ``control`` names the second entry of ``reference``."""

    seconds: Mapping[str, tuple[float, ...]]
    reference: str
    control: str

    def including(self, name: str, seconds: Sequence[float]) -> "Comparison":
        """With times that were taken inside a candidate, one a round: of a part of it."""
        if len(seconds) != len(self.seconds[self.reference]):
            raise ValueError(f"{len(seconds)} times of {name!r} for {len(self.seconds[self.reference])} rounds")
        return replace(self, seconds={**self.seconds, name: tuple(seconds)})

    def speed(self, name: str, against: str | None = None) -> Ratio:
        """Speed of ``name`` relative to ``against`` (default: the reference), round by round."""
        ours, theirs = (np.array(self.seconds[n]) for n in (name, against or self.reference))
        ratios = theirs / ours
        draws = np.random.default_rng(0).integers(len(ratios), size=(REPLICATES, len(ratios)))
        low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
        return Ratio(float(np.median(ratios)), float(low), float(high))

    def median_seconds(self, name: str) -> float:
        """Median over rounds, in seconds: for orientation only, since it drifts with the machine."""
        return float(np.median(self.seconds[name]))


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came while comparing, after one whole round or more; ``finished`` has these."""

    def __init__(self, finished: Comparison) -> None:
        super().__init__("stopped")
        self.finished = finished


def compare(
    candidates: Mapping[str, Candidate],
    *,
    reference: str,
    rounds: int,
    warmup: int,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], object] = lambda _round: None,
) -> Comparison:
    """Run every candidate, and the reference once more, in each of ``rounds`` rounds, in random order.

    ``warmup`` rounds before them are not kept. Queued CUDA work is waited for before and after each measurement.
    ``progress`` is called with the number of each finished round. Raises ValueError for an unknown reference or
    fewer than two rounds, and `Stopped` with what there is where Ctrl-C comes after a whole round.
    """
    if reference not in candidates:
        raise ValueError(f"reference {reference!r} is no candidate; there are: {', '.join(candidates)}")
    if rounds < 2:
        raise ValueError(f"an interval over rounds needs at least 2 of them, got {rounds}")
    control = f"{reference} (again)"
    entries = {**candidates, control: candidates[reference]}
    order, draw = list(entries), random.Random(seed)
    kept: dict[str, list[float]] = {name: [] for name in entries}
    try:
        for index in range(warmup + rounds):
            draw.shuffle(order)
            for name in order:
                seconds = _measure(entries[name], clock)
                if index >= warmup:
                    kept[name].append(seconds)
            progress(index + 1)
    except KeyboardInterrupt as stop:
        if whole := min(map(len, kept.values())):
            finished = {name: tuple(values[:whole]) for name, values in kept.items()}
            raise Stopped(Comparison(finished, reference, control)) from stop
        raise
    return Comparison({name: tuple(values) for name, values in kept.items()}, reference, control)


def _measure(candidate: Candidate, clock: Callable[[], float]) -> float:
    with candidate() as work:
        _wait()
        begin = clock()
        work()
        _wait()
        return clock() - begin


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
