"""Interleaved comparisons: a planted ratio is found on a clock that drifts, and the control shows what is noise."""

import random
from contextlib import contextmanager

import pytest

from harness.speed.compare import Comparison, Goal, Ratio, Stopped, always, compare


class DriftingMachine:
    """A clock that only work moves, at a pace that wanders over a factor of ten."""

    def __init__(self, seed: int = 0, noise: float = 0.0) -> None:
        self.now, self._pace, self._draw, self._noise = 0.0, 1.0, random.Random(seed), noise

    def clock(self) -> float:
        return self.now

    def work(self, cost: float):
        def run() -> None:
            self._pace = min(max(self._pace * self._draw.uniform(0.9, 1.1), 0.3), 3.0)
            self.now += cost * self._pace * self._draw.lognormvariate(0, self._noise)

        return run


def run(machine: DriftingMachine, costs: dict[str, float], **options) -> Comparison:
    candidates = {name: always(machine.work(cost)) for name, cost in costs.items()}
    settings = {"reference": "plain", "rounds": 200, "warmup": 2, "seed": 0}
    return compare(candidates, clock=machine.clock, **(settings | options))


def test_a_planted_ratio_is_found_while_the_machine_drifts():
    comparison = run(DriftingMachine(), {"plain": 1.0, "twice as fast": 0.5, "slow": 3.0})
    assert comparison.speed("twice as fast").median == pytest.approx(2, rel=0.05)
    assert comparison.speed("slow").median == pytest.approx(1 / 3, rel=0.05)
    assert comparison.speed("twice as fast", "slow").median == pytest.approx(6, rel=0.05)


def test_the_interval_holds_the_truth_and_narrows_with_more_rounds():
    widths = []
    for rounds in (20, 400):
        ratio = run(DriftingMachine(noise=0.1), {"plain": 1.0, "other": 0.8}, rounds=rounds).speed("other")
        assert ratio.low <= 1.25 <= ratio.high
        widths.append(ratio.high - ratio.low)
    assert widths[1] < widths[0] / 2


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(100):
        ratio = run(DriftingMachine(seed, noise=0.2), {"plain": 1.0, "other": 0.8}, rounds=25, seed=seed).speed("other")
        covered += ratio.low <= 1.25 <= ratio.high
    assert covered >= 85


def test_the_control_is_the_reference_against_itself():
    comparison = run(DriftingMachine(noise=0.05), {"plain": 1.0, "other": 0.7})
    control = comparison.speed(comparison.control)
    assert comparison.control == "plain (again)"
    assert control.median == pytest.approx(1, abs=0.02)
    assert control.low <= 1 <= control.high


def test_every_candidate_runs_once_a_round_in_an_order_drawn_by_the_seed():
    def order(seed: int) -> list[str]:
        ran: list[str] = []
        candidates = {name: always(lambda name=name: ran.append(name)) for name in "abc"}
        comparison = compare(candidates, reference="a", rounds=6, warmup=2, seed=seed)
        assert {len(seconds) for seconds in comparison.seconds.values()} == {6}
        return ran

    ran = order(1)
    rounds = [ran[start : start + 4] for start in range(0, 32, 4)]
    assert all(sorted(names) == ["a", "a", "b", "c"] for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    assert ran == order(1)
    assert ran != order(2)


def test_opening_and_closing_are_not_timed():
    machine = DriftingMachine()

    @contextmanager
    def costly_to_open():
        machine.now += 1000
        yield machine.work(1.0)
        machine.now += 1000

    candidates = {"plain": always(machine.work(1.0)), "opened": costly_to_open}
    comparison = compare(candidates, reference="plain", rounds=50, warmup=0, seed=0, clock=machine.clock)
    assert comparison.speed("opened").median == pytest.approx(1, rel=0.05)


def test_a_part_that_was_timed_inside_a_candidate_is_compared_round_by_round():
    comparison = run(DriftingMachine(), {"plain": 1.0, "whole": 2.0})
    halves = [seconds / 2 for seconds in comparison.seconds["whole"]]
    assert comparison.including("half", halves).speed("half", "whole") == Ratio(2, 2, 2)
    with pytest.raises(ValueError, match="3 times of 'half' for 200 rounds"):
        comparison.including("half", halves[:3])


def test_a_goal_is_met_only_when_the_whole_interval_is_above_it():
    goal = Goal(0.98)
    assert goal.verdict(Ratio(1.0, 0.98, 1.02)) == "met"
    assert goal.verdict(Ratio(1.0, 0.97, 1.02)) == "within noise"
    assert goal.verdict(Ratio(0.96, 0.94, 0.98)) == "within noise"
    assert goal.verdict(Ratio(0.95, 0.94, 0.97)) == "not met"


def test_an_unknown_reference_and_a_single_round_are_refused():
    with pytest.raises(ValueError, match="reference 'fast' is no candidate; there are: plain"):
        run(DriftingMachine(), {"plain": 1.0}, reference="fast")
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        run(DriftingMachine(), {"plain": 1.0}, rounds=1)


@pytest.mark.parametrize(("works", "rounds"), [(3 + 3 * 2 + 1, 2), (3 + 3 * 4 - 1, 3)])
def test_whole_rounds_outlive_being_stopped(works, rounds):
    machine, left = DriftingMachine(), iter(range(works))

    def work() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        machine.work(1.0)()

    with pytest.raises(Stopped) as stopped:
        compare({"a": always(work), "b": always(work)}, reference="a", rounds=9, warmup=1, seed=0, clock=machine.clock)
    assert {len(seconds) for seconds in stopped.value.finished.seconds.values()} == {rounds}


def test_stopped_before_a_whole_round_there_is_nothing():
    def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        compare({"a": always(work)}, reference="a", rounds=2, warmup=0, seed=0)
    assert not isinstance(stopped.value, Stopped)
