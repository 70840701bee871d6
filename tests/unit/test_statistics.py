"""harness.measure.statistics against closed forms and other libraries; the model behind it is in test_spread.py."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from harness.measure.statistics import (
    Measurement,
    estimate_mean,
    holm,
    paired_difference,
    paired_differences,
    smallest_detectable,
)


def _grid(values, *, start=0):
    """[seed, cluster] or [seed, cluster, item] values -> measurements; nan = failed, hence absent."""
    values = np.asarray(values, dtype=float)
    values = values[..., None] if values.ndim == 2 else values
    return [
        Measurement(s, f"q{start + c}", f"q{start + c}:{i}", float(v))
        for (s, c, i), v in np.ndenumerate(values)
        if not math.isnan(v)
    ]


def test_with_one_seed_the_interval_is_the_t_interval_over_prompts():
    values = np.random.default_rng(1).standard_normal((1, 30)) * 3 + 5
    estimate = estimate_mean(_grid(values))
    half = stats.t.ppf(0.975, 29) * values.std(ddof=1) / math.sqrt(30)
    assert estimate.mean == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_for_right_or_wrong_items_the_interval_is_the_binomial_one():
    values = np.repeat([[0.0, 100.0]], [300, 700], axis=1)
    estimate = estimate_mean(_grid(values))
    half = 1.959964 * 100 * math.sqrt(0.3 * 0.7 / 1000)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.005)


def test_an_interval_ends_where_the_scale_does_but_not_short_of_a_value():
    values = [[100.0, 100.0, 100.0, 90.0]]
    assert estimate_mean(_grid(values)).high > 100
    assert estimate_mean(_grid(values), bounds=(0.0, 100.0)).high == 100
    beyond = estimate_mean(_grid([[101.0, 100.0, 100.0, 90.0]]), bounds=(0.0, 100.0))
    assert beyond.high > 101
    few = _grid([[1.0, 10.0], [10.0, 9.0]]), _grid([[5.0, 5.0], [5.0, 5.0]])
    difference = paired_differences({"a": few[0], "b": few[1]}, [("a", "b")], bounds=(1.0, 10.0))["a", "b"]
    assert (difference.low, difference.high) == (-9, 9)


def test_seeds_that_repeat_the_same_values_do_not_narrow_the_interval():
    values = np.random.default_rng(5).standard_normal((1, 50))
    once, thrice = estimate_mean(_grid(values)), estimate_mean(_grid(np.repeat(values, 3, axis=0)))
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low)
    assert (thrice.n, thrice.n_seeds, thrice.n_clusters) == (150, 3, 50)


def test_the_turns_of_one_question_do_not_count_as_independent_prompts():
    values = np.random.default_rng(6).standard_normal((1, 50, 1))
    once, twice = estimate_mean(_grid(values)), estimate_mean(_grid(np.repeat(values, 2, axis=2)))
    assert twice.high - twice.low == pytest.approx(once.high - once.low)


def test_one_cluster_leaves_the_spread_over_seeds():
    estimate = estimate_mean(_grid([[1.0], [2.0], [3.0]]))
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert (estimate.low, estimate.high) == pytest.approx((2 - half, 2 + half))


def test_one_seed_and_one_cluster_give_a_mean_without_an_interval():
    estimate = estimate_mean(_grid([[[1.0, 2.0]]]))
    assert estimate.mean == 1.5
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_equal_values_give_an_interval_of_no_width_exactly():
    estimate = estimate_mean(_grid(np.full((3, 7), 0.1)))
    assert (estimate.mean, estimate.low, estimate.high) == (0.1, 0.1, 0.1)


def test_the_same_measurements_in_another_order_give_the_same_interval():
    measurements = _grid(np.random.default_rng(7).standard_normal((3, 20)))
    assert estimate_mean(measurements) == estimate_mean(measurements[::-1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_a_number_is_refused(value):
    with pytest.raises(ValueError, match=r"'i'.*leave failed items out"):
        estimate_mean([Measurement(0, "c", "i", value)])


def test_no_measurements_and_repeated_measurements_are_refused():
    with pytest.raises(ValueError, match="no measurements"):
        estimate_mean([])
    with pytest.raises(ValueError, match="measured twice"):
        estimate_mean([Measurement(0, "c", "i", 1.0), Measurement(0, "c", "i", 2.0)])


def test_a_paired_difference_ignores_what_the_prompts_have_in_common():
    rng = np.random.default_rng(9)
    prompts = 10 * rng.standard_normal((1, 40))
    base = prompts + 0.1 * rng.standard_normal((3, 40))
    difference = paired_difference(_grid(base + 0.5), _grid(base))
    assert difference.mean == pytest.approx(0.5)
    noisy = paired_difference(_grid(base + 0.5 + 0.1 * rng.standard_normal((3, 40))), _grid(base))
    assert 0.4 < noisy.low < 0.5 < noisy.high < 0.6
    assert noisy.p < 1e-6


def test_a_difference_pairs_by_seed_and_item_and_counts_what_has_no_partner():
    base = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, math.nan]])
    treated = np.array([[2.0, 4.0, math.nan], [5.0, 7.0, 9.0]])
    difference = paired_difference(_grid(treated), _grid(base))
    assert difference.mean == pytest.approx((1 + 2 + 1 + 2) / 4)
    assert (difference.n, difference.unpaired) == (4, 2)


def test_p_is_uniform_enough_under_no_difference():
    rng = np.random.default_rng(10)
    p = [
        paired_difference(_grid(rng.standard_normal((1, 40))), _grid(rng.standard_normal((1, 40)))).p
        for _ in range(400)
    ]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.08
    assert 0.43 <= np.mean(np.array(p) < 0.5) <= 0.57


def test_with_one_seed_p_is_the_t_tests_however_small():
    values = np.random.default_rng(11).standard_normal((1, 400)) + 0.7
    difference = paired_difference(_grid(values), _grid(np.zeros((1, 400))))
    assert difference.p == pytest.approx(stats.ttest_1samp(values[0], 0)[1])
    assert 0 < difference.p < 1e-25


def test_many_differences_are_those_of_one_pair_each():
    rng = np.random.default_rng(14)
    values = rng.standard_normal((3, 3, 12))
    values[1, 2, :5] = values[2, 0] = math.nan
    sides = {name: _grid(value) for name, value in zip("abc", values, strict=True)}
    sides["nothing"] = []
    found = paired_differences(sides, [("a", "b"), ("c", "b"), ("a", "nothing")])
    assert found == {(x, y): paired_difference(sides[x], sides[y]) for x, y in (("a", "b"), ("c", "b"))}
    assert (found["c", "b"].n, found["c", "b"].unpaired, found["c", "b"].n_seeds) == (19, 17, 2)


def test_no_difference_anywhere_has_p_one_and_few_prompts_cannot_have_a_small_p():
    same = _grid(np.ones((3, 5)))
    assert paired_difference(same, same).p == 1.0
    assert paired_difference(_grid(np.full((3, 5), 2.0)), same).p == 2**-4
    assert math.isnan(paired_difference(_grid([[2.0]]), _grid([[1.0]])).p)


def test_nothing_to_pair_is_refused():
    with pytest.raises(ValueError, match="no item was measured on both sides"):
        paired_difference(_grid([[1.0]]), _grid([[1.0]], start=5))


def test_holm_multiplies_by_the_tests_left_and_stays_monotone():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_holm_is_that_of_statsmodels():
    p = np.random.default_rng(15).random(30) ** 3
    assert holm(list(p)) == pytest.approx(np.asarray(multipletests(p, method="holm")[1]))


def test_holm_does_not_count_what_was_not_tested():
    adjusted = holm([0.01, math.nan, 0.03])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.03)
    assert all(math.isnan(p) for p in holm([math.nan, math.nan]))


@pytest.mark.parametrize(
    ("comparisons", "factor", "least", "most"), [(1, 1, 0.72, 0.88), (10, 1, 0.7, 0.9), (1, 0.5, 0.15, 0.45)]
)
def test_a_difference_of_the_smallest_detectable_size_is_found_four_times_in_five(comparisons, factor, least, most):
    rng, prompts, many = np.random.default_rng(12), 60, 4000
    known = paired_difference(_grid(rng.standard_normal((1, many))), _grid(np.zeros((1, many))))
    size = factor * smallest_detectable(known, comparisons) * math.sqrt(many / prompts)
    zero, found = _grid(np.zeros((1, prompts))), 0
    for _ in range(300):
        drawn = _grid(rng.standard_normal((1, prompts)) + size)
        found += paired_difference(drawn, zero).p * comparisons < 0.05
    assert least <= found / 300 <= most


def test_the_smallest_detectable_difference_is_2_8_standard_errors_of_a_single_test():
    values = np.random.default_rng(13).standard_normal((1, 400))
    difference = paired_difference(_grid(values), _grid(np.zeros((1, 400))))
    se = difference.spread.se
    assert se == pytest.approx(values.std(ddof=1) / 20)
    assert smallest_detectable(difference, 1) == pytest.approx(2.802 * se, rel=0.005)
    assert smallest_detectable(difference, 48) == pytest.approx(4.12 * se, rel=0.01)


def test_three_seeds_that_differ_need_a_larger_difference():
    values = np.array([[0.0], [1.0], [2.0]]) + np.zeros((3, 40))
    difference = paired_difference(_grid(values), _grid(np.zeros((3, 40))))
    t = stats.t.ppf([1 - 0.025 / 48, 0.8], 2)
    assert smallest_detectable(difference, 48) == pytest.approx(t.sum() / math.sqrt(3))


def test_what_no_difference_could_have_shown_is_not_called_detectable():
    same = _grid(np.ones((3, 5)))
    assert math.isnan(smallest_detectable(paired_difference(same, same), 1))  # nothing varied
    few = paired_difference(_grid([[1.0, 3.0, 2.0, 4.0]]), _grid(np.zeros((1, 4))))
    assert few.least_p == 2**-3
    assert math.isnan(smallest_detectable(few, 1))
    enough = paired_difference(_grid([[1.0, 3.0, 2.0, 4.0, 2.0, 3.0]]), _grid(np.zeros((1, 6))))
    assert enough.least_p == 2**-5
    assert smallest_detectable(enough, 1) > 0
    assert math.isnan(smallest_detectable(enough, 2))
