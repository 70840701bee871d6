"""harness.measure.statistics against closed forms, brute force and simulated truth."""

import itertools
import math

import numpy as np
import pytest

from harness.measure.statistics import Measurement, estimate_mean, holm, paired_difference, smallest_detectable


def _grid(values, *, start=0):
    """[seed, cluster] or [seed, cluster, item] values -> measurements; nan = failed, hence absent."""
    values = np.asarray(values, dtype=float)
    values = values[..., None] if values.ndim == 2 else values
    return [
        Measurement(s, f"q{start + c}", f"q{start + c}:{i}", float(v))
        for (s, c, i), v in np.ndenumerate(values)
        if not math.isnan(v)
    ]


def _two_way(rng, seeds, clusters, *, between_seeds, between_clusters, noise):
    return (
        between_seeds * rng.standard_normal((seeds, 1))
        + between_clusters * rng.standard_normal((1, clusters))
        + noise * rng.standard_normal((seeds, clusters))
    )


def test_with_one_seed_and_many_prompts_the_interval_is_the_closed_form_one():
    values = np.random.default_rng(1).standard_normal((1, 2000)) * 3 + 5
    estimate = estimate_mean(_grid(values))
    half = 1.959964 * values.std() / math.sqrt(2000)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_for_right_or_wrong_items_the_interval_is_the_binomial_one():
    values = np.repeat([[0.0, 100.0]], [300, 700], axis=1)
    estimate = estimate_mean(_grid(values))
    half = 1.959964 * 100 * math.sqrt(0.3 * 0.7 / 1000)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.05)


def test_the_replicates_spread_as_owens_variance_formula_says():
    # Exact variance of the pigeonhole mean of a balanced table given the data, from the multinomial moments:
    # E[w_s w_t] = 1 - 1/R + [s = t], and the same for the columns.
    rng = np.random.default_rng(2)
    rows, columns = 12, 60
    values = _two_way(rng, rows, columns, between_seeds=1, between_clusters=1, noise=1)
    centred = values - values.mean()
    by_row = (centred.sum(axis=1) ** 2).sum()
    by_column = (centred.sum(axis=0) ** 2).sum()
    total = (1 - 1 / columns) * by_row + (1 - 1 / rows) * by_column + (centred**2).sum()
    variance = total / (rows * columns) ** 2
    estimate = estimate_mean(_grid(values), replicates=40_000)
    assert (estimate.high - estimate.low) / (2 * 1.959964) == pytest.approx(math.sqrt(variance), rel=0.03)


def test_it_equals_a_brute_force_loop_over_drawn_seeds_and_drawn_prompts_when_items_are_missing():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(4, 15, 2)) + rng.normal(size=(4, 1, 1))
    values[rng.random(values.shape) < 0.2] = math.nan
    values[2, 3:9] = math.nan
    means = []
    for _ in range(6000):
        drawn_seeds, drawn_clusters = rng.integers(4, size=4), rng.integers(15, size=15)
        found = [v for s in drawn_seeds for c in drawn_clusters for v in values[s, c] if not math.isnan(v)]
        means.append(sum(found) / len(found))
    low, high = np.quantile(means, [0.025, 0.975])
    estimate = estimate_mean(_grid(values))
    assert estimate.mean == pytest.approx(np.nanmean(values))
    assert estimate.n == int((~np.isnan(values)).sum())
    assert estimate.low == pytest.approx(low, abs=0.04 * (high - low))
    assert estimate.high == pytest.approx(high, abs=0.04 * (high - low))


def test_it_equals_the_enumeration_of_every_draw_of_a_tiny_table():
    values = np.array([[1.0, 2.0], [4.0, 8.0]])
    draws = list(itertools.product((0, 1), repeat=2))
    every = [values[np.ix_(seeds, clusters)].mean() for seeds in draws for clusters in draws]
    estimate = estimate_mean(_grid(values), level=0.7)
    assert estimate.low == pytest.approx(np.quantile(every, 0.15, method="inverted_cdf"))
    assert estimate.high == pytest.approx(np.quantile(every, 0.85, method="inverted_cdf"))


def test_a_replicate_that_draws_only_missing_items_is_left_out():
    estimate = estimate_mean(_grid([[1.0, math.nan], [math.nan, 3.0]]))
    assert (estimate.mean, estimate.low, estimate.high) == (2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("seeds", "clusters", "between_seeds", "at_least", "at_most"), [(3, 40, 0.1, 0.92, 0.99), (8, 60, 0.3, 0.90, 0.98)]
)
def test_the_interval_covers_the_truth_about_as_often_as_it_says(seeds, clusters, between_seeds, at_least, at_most):
    assert at_least <= _coverage(seeds, clusters, between_seeds=between_seeds) <= at_most


def test_three_seeds_that_swamp_the_prompts_are_covered_less_often_as_the_documentation_says():
    assert 0.68 <= _coverage(3, 40, between_seeds=10.0) <= 0.82


def _coverage(seeds, clusters, *, between_seeds, data_sets=400):
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(data_sets):
        table = _two_way(rng, seeds, clusters, between_seeds=between_seeds, between_clusters=1, noise=0.7)
        estimate = estimate_mean(_grid(table), replicates=600)
        covered += estimate.low <= 0 <= estimate.high
    return covered / data_sets


def test_seeds_that_repeat_the_same_values_do_not_narrow_the_interval():
    values = np.random.default_rng(5).standard_normal((1, 50))
    once, thrice = estimate_mean(_grid(values)), estimate_mean(_grid(np.repeat(values, 3, axis=0)))
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.05)
    assert (thrice.n, thrice.n_seeds, thrice.n_clusters) == (150, 3, 50)


def test_the_turns_of_one_question_do_not_count_as_independent_prompts():
    values = np.random.default_rng(6).standard_normal((1, 50, 1))
    once, twice = estimate_mean(_grid(values)), estimate_mean(_grid(np.repeat(values, 2, axis=2)))
    assert twice.high - twice.low == pytest.approx(once.high - once.low)


def test_one_cluster_leaves_the_spread_over_seeds():
    estimate = estimate_mean(_grid([[1.0], [2.0], [3.0]]))
    assert 1.0 <= estimate.low < 2.0 < estimate.high <= 3.0


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


def test_chunking_the_replicates_changes_no_statistic(monkeypatch):
    measurements = _grid(np.random.default_rng(8).standard_normal((3, 20)))
    whole = estimate_mean(measurements)
    monkeypatch.setattr("harness.measure.statistics._CHUNK_CELLS", 1000)
    chunked = estimate_mean(measurements)
    assert chunked.low == pytest.approx(whole.low, abs=0.05)
    assert chunked.high == pytest.approx(whole.high, abs=0.05)


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
    assert noisy.p == pytest.approx(2 / 10_001)


def test_a_difference_pairs_by_seed_and_item_and_counts_what_has_no_partner():
    base = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, math.nan]])
    treated = np.array([[2.0, 4.0, math.nan], [5.0, 7.0, 9.0]])
    difference = paired_difference(_grid(treated), _grid(base))
    assert difference.mean == pytest.approx((1 + 2 + 1 + 2) / 4)
    assert (difference.n, difference.unpaired) == (4, 2)


def test_p_is_uniform_enough_under_no_difference():
    rng = np.random.default_rng(10)
    p = [
        paired_difference(_grid(rng.standard_normal((1, 40))), _grid(rng.standard_normal((1, 40))), replicates=600).p
        for _ in range(400)
    ]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.10
    assert 0.43 <= np.mean(np.array(p) < 0.5) <= 0.57


def test_p_agrees_with_the_t_test_on_many_prompts():
    from scipy.stats import t

    values = np.random.default_rng(11).standard_normal((1, 400)) + 0.1
    difference = paired_difference(_grid(values), _grid(np.zeros((1, 400))), replicates=40_000)
    score = values.mean() / (values.std(ddof=1) / 20)
    assert difference.p == pytest.approx(2 * t.sf(score, df=399), rel=0.15)


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
        found += paired_difference(drawn, zero, replicates=2000).p * comparisons < 0.05
    assert least <= found / 300 <= most


def test_the_smallest_detectable_difference_is_2_8_standard_errors_of_a_single_test():
    values = np.random.default_rng(13).standard_normal((1, 400))
    difference = paired_difference(_grid(values), _grid(np.zeros((1, 400))))
    assert difference.se == pytest.approx(values.std() / 20, rel=0.03)
    assert smallest_detectable(difference, 1) == pytest.approx(2.802 * difference.se, rel=1e-3)
    assert smallest_detectable(difference, 48) == pytest.approx(4.12 * difference.se, rel=1e-3)


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
