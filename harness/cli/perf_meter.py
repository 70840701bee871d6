"""The body of `perf meter`."""

import torch

from harness.compute.overhead import OverheadOptions, measure_overhead
from harness.perf import Goal

GOAL = Goal(0.98)
"""A metered run is at least so many times as fast as the unmetered one."""


def meter_command(threads: int | None, *, rounds: int, steps: int, seed: int) -> None:
    """Measure and print; with at most 2 % of wall time for the meter the goal is met."""
    if threads is not None:
        torch.set_num_threads(threads)
    comparison = measure_overhead(OverheadOptions(rounds, steps, seed))
    speed = comparison.speed("metered")
    print(f"{rounds} rounds of {steps} training steps, {torch.get_num_threads()} threads; median [95 % interval]")
    print(f"control, unmetered against itself: {comparison.speed(comparison.control)}")
    print(f"speed of the metered run:          {speed}  (goal: at least {GOAL.at_least}: {GOAL.verdict(speed)})")
