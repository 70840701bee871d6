"""Families of sequences that begin alike: every sequence once, the most tokens saved."""

import itertools
import random

import pytest

from harness.model.batching import cut_batches
from harness.model.prefix_cache import families


def saved(found):
    return sum((len(family.members) - 1) * family.shared for family in found)


def partitions(ordered):
    """Every way to cut sorted sequences into runs."""
    for cuts in itertools.product([False, True], repeat=len(ordered) - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(ordered)]
        yield [ordered[a:b] for a, b in itertools.pairwise(edges)]


def common(run):
    return next((i for i, column in enumerate(zip(*run, strict=False)) if len(set(column)) > 1), min(map(len, run)))


def is_node(run, ordered):
    """Whether nothing outside ``run`` begins with what its sequences share."""
    return len(run) == 1 or sum(s[: common(run)] == run[0][: common(run)] for s in ordered) == len(run)


@pytest.mark.parametrize("seed", range(40))
def test_no_other_choice_of_whole_nodes_of_the_prefix_tree_saves_more(seed):
    draw = random.Random(seed)
    sequences = {tuple(draw.choices((1, 2), k=draw.randint(1, 6))) for _ in range(9)}
    found = families(list(sequences), shortest=1)
    assert sorted(member for family in found for member in family.members) == sorted(sequences)
    assert all(member[: family.shared] == family.prefix for family in found for member in family.members)
    ordered = sorted(sequences)
    best = max(
        sum((len(run) - 1) * common(run) for run in runs)
        for runs in partitions(ordered)
        if all(is_node(run, ordered) for run in runs)
    )
    assert saved(found) == best


def test_short_prefixes_are_not_shared():
    sequences = [(1, 2, 3, 4), (1, 2, 3, 5), (7, 8)]
    assert [(f.shared, f.members) for f in families(sequences, shortest=4)] == [(0, tuple(sorted(sequences)))]
    assert [f.shared for f in families(sequences, shortest=3)] == [3, 0]


def test_a_sequence_that_is_the_beginning_of_another_is_in_its_family():
    (family,) = families([(1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 5)], shortest=2)
    assert family.shared == 3
    assert len(family.members) == 3


def test_nothing_has_no_families():
    assert families([]) == []


def cost(lengths, batches, forward):
    return sum(len(batch) * lengths[batch[0]] + forward for batch in batches)


@pytest.mark.parametrize("seed", range(20))
def test_batches_are_the_cheapest_that_fit(seed):
    draw = random.Random(seed)
    lengths = sorted((draw.randint(1, 40) for _ in range(8)), reverse=True)
    size, forward = draw.randint(1, 8), draw.choice((0, 5, 30))
    found = cut_batches(lengths, size, forward=forward)
    assert [i for batch in found for i in batch] == list(range(8))
    allowed = [runs for runs in partitions(list(range(8))) if max(map(len, runs)) <= size]
    assert cost(lengths, found, forward) == min(cost(lengths, runs, forward) for runs in allowed)


def test_no_rows_need_no_batches():
    assert cut_batches([], 4, forward=1) == []
