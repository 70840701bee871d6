"""The next trial is a function of the trials before it; nothing is tried twice; TPE goes where scores are high."""

import math

import pytest

from harness.experiment.search import Told, suggest
from harness.experiment.space import Choices, Space, Span

A, B = (1, True, "x", None), (0.5, 2)
LISTS = Space({"a": Choices(A, A), "b": Choices(B, B)}, {"a": "x", "b": 2}, ())
RANGES = Space(
    {"rate": Span(1e-4, 1e-1, log=True, whole=False), "k": Span(1, 64, log=False, whole=True)},
    {"rate": 0.5, "k": 4},  # the rate lies outside
    (),
)


def searched(space, search, trials, score, seed=0):
    told: list[Told] = []
    while len(told) < trials:
        params = suggest(space, search, told, trials, lambda attempt: 1000 * len(told) + attempt + seed)
        told.append(score(params))
    return told


def by_rate(params) -> Told:
    return Told(params, -abs(math.log10(params["rate"]) + 2))


@pytest.mark.parametrize("search", ["tpe", "random", "grid"])
def test_a_search_over_lists_tries_the_own_values_first_and_then_every_other_once(search):
    told = searched(LISTS, search, 8, lambda params: Told(params, float(len(str(params)))))
    assert told[0].params == LISTS.own
    assert len({repr(sorted(one.params.items())) for one in told}) == 8 == LISTS.points


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_a_search_depends_on_the_trials_before_and_its_seed_alone(search):
    first, again = (searched(RANGES, search, 9, by_rate) for _ in range(2))
    assert first == again
    assert first != searched(RANGES, search, 9, by_rate, seed=1)
    assert first[0].params == RANGES.own
    assert all(1e-4 <= one.params["rate"] <= 1e-1 and 1 <= one.params["k"] <= 64 for one in first[1:])
    assert all(type(one.params["k"]) is int for one in first)


def test_tpe_learns_and_stays_away_from_what_fails():
    scores = {}
    for search in ("tpe", "random"):
        runs = [searched(RANGES, search, 24, by_rate, seed=10**6 * s) for s in range(5)]
        scores[search] = sum(sum(one.score or 0 for one in told[12:]) / 12 for told in runs) / 5
    assert scores["tpe"] > scores["random"] + 0.2

    def with_a_floor(params) -> Told:
        rate = params["rate"]
        return Told(params, math.log10(rate), excess=math.log10(rate) + 3)  # best where it is not allowed

    told = searched(RANGES, "tpe", 24, with_a_floor)
    assert sum(one.params["rate"] < 1e-3 for one in told[12:]) > 6
    told = searched(RANGES, "tpe", 12, lambda params: Told(params, None))
    assert len(told) == 12
